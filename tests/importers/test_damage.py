"""Damaged files from elsewhere cost an error and no memory: whatever byte was changed, and wherever they end."""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.importers.test_importers import quantized, write_gptq
from zeropoint import artifact, exporters, importers
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError, ZeropointError
from zeropoint.ggufile import GgufFile

#: What reading a damaged tiny file may take: the file is 150 KB.
MAX_BYTES = 64 << 20


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    exporters.export(artifact.open(quantized("llama_tied", "int4", folder)), "gguf", folder / "m.gguf")
    return folder / "m.gguf"


@pytest.fixture(scope="module")
def gptq_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    write_gptq(tiny.make_checkpoint("llama_untied", folder / "model"), folder / "gptq", symmetric=False)
    return folder / "gptq"


def damaged(data: bytes, count: int, header: int) -> Iterator[bytes]:
    """Copies cut short, with bytes changed (mostly among the first `header`), and with numbers made huge."""
    rng = np.random.default_rng(0)
    for index in range(count):
        changed = bytearray(data)
        where = int(rng.integers(0, header))
        if index % 4 == 0:
            changed = changed[: int(rng.integers(0, len(data)))]
        elif index % 4 == 1:
            for place in rng.integers(0, header, 4):
                changed[place] = int(rng.integers(0, 256))
        elif index % 4 == 2:
            changed[where : where + 8] = struct.pack("<Q", 1 << int(rng.integers(20, 64)))
        else:
            changed[int(rng.integers(0, len(data)))] ^= 1 << int(rng.integers(0, 8))
        yield bytes(changed)


def read_all(path: Path) -> bool:
    """Whether every weight could be read. Nothing but a `ZeropointError` may be raised."""
    try:
        source = importers.open_source(path)
        for name in source.tensors:
            source.read(name)
    except ZeropointError as error:
        sentence = str(error)
    else:
        return True
    assert "\n" not in sentence
    assert len(sentence) < 600
    return False


def test_300_damaged_gguf_files(gguf_file: Path, tmp_path: Path) -> None:
    data, path = gguf_file.read_bytes(), tmp_path / "m.gguf"
    header = min(entry.start for entry in GgufFile(gguf_file).tensors.values())
    assert read_all(gguf_file)
    refused = 0
    tracemalloc.start()
    for content in damaged(data, 300, header):
        path.write_bytes(content)
        refused += not read_all(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert refused > 150
    assert peak < MAX_BYTES


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_100_damaged_gptq_folders_each(name: str, gptq_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gptq_folder, tmp_path / "gptq"))
    data = (gptq_folder / name).read_bytes()
    assert read_all(folder)
    refused = 0
    for content in damaged(data, 100, min(len(data), 4000)):
        (folder / name).write_bytes(content)
        refused += not read_all(folder)
    assert refused > 40


def test_whole_imports_of_damaged_files_leave_nothing(gguf_file: Path, tmp_path: Path) -> None:
    data, path = gguf_file.read_bytes(), tmp_path / "m.gguf"
    for content in damaged(data, 16, 2000):
        path.write_bytes(content)
        try:
            importers.import_model(path, tmp_path / "out", overwrite=True)
        except ZeropointError:
            assert {each.name for each in tmp_path.iterdir()} <= {"m.gguf", "out"}


def test_a_damaged_gguf_source_is_not_given_to_transformers(gguf_file: Path, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf_file.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="cut short"):
        open_checkpoint(tmp_path / "m.gguf")
