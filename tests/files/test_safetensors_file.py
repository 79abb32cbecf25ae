"""Tensors come back whole, and what was read does not stay in memory for as long as the file is open."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zeropoint.errors import CheckpointError
from zeropoint.files import safetensors_file
from zeropoint.files.safetensors_file import DTYPES, TensorFile
from zeropoint.runtime import host_memory as memory

#: Where 32 and 64 bits end.
ENDS = (2**31 - 1, 2**31, 2**32, 2**61, 2**62 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)


@given(
    contents=st.dictionaries(
        st.text("aZ0. \n\x00\u00e9\u2581\U0001f600", max_size=20),
        st.tuples(st.sampled_from(sorted(DTYPES)), SHAPES),
        max_size=5,
    ),
    seed=st.integers(0, 10**6),
)
def test_what_was_written_is_read(
    contents: dict[str, tuple[str, tuple[int, ...]]], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path, rng, tensors = (
        tmp_path_factory.getbasetemp() / "written.safetensors",
        np.random.default_rng(seed),
        {},
    )
    for name, (dtype, shape) in contents.items():
        bits = rng.integers(0, 2 if dtype == "BOOL" else 256, (*shape, DTYPES[dtype].itemsize), np.uint8)
        tensors[name] = bits.view(DTYPES[dtype]).reshape(shape)
    assert safetensors_file.write(path, tensors) == sum(value.nbytes for value in tensors.values())
    file = TensorFile(path)
    assert sorted(file.names()) == sorted(tensors)
    for name, value in tensors.items():
        assert file.info(name) == (contents[name][0], value.shape)
        assert file.nbytes(name) == value.nbytes
        assert file.read(name).dtype == value.dtype
        assert file.read(name).tobytes() == value.tobytes()


def written(path: Path, shape: list[int], end: int) -> Path:
    """Write a file of one float32 tensor whose header says this shape and end, and return its path."""
    header = json.dumps({"t": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    return path


@pytest.mark.parametrize("size", ENDS)
def test_no_size_of_a_header_is_trusted(size: int, tmp_path: Path) -> None:
    shapes = [[size], [size, 0], [0, size], [size, size], [4, size], [size, 4], [0, size, size]]
    for shape in shapes + [[size, other] for other in ENDS]:
        for end in (0, 4 * size % 2**64):
            with pytest.raises(CheckpointError) as refusal:
                TensorFile(written(tmp_path / "x.safetensors", shape, end)).read("t")
            assert "\n" not in str(refusal.value)
    for length in (size, size % 2**64):
        if length < 2**64:
            (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", length) + bytes(64))
            with pytest.raises(CheckpointError):
                TensorFile(tmp_path / "x.safetensors")


@pytest.mark.parametrize("most", [0, 100, 1 << 20])
def test_a_file_opened_anew_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(safetensors_file, "MOST_MAPPED", most)
    tensors = {f"t{i}": np.arange(i * 7, dtype=np.float32).reshape(i, 7) for i in range(1, 9)}
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    file = TensorFile(tmp_path / "x.safetensors")
    kept = {name: file.read(name) for name in [*tensors, *tensors]}
    for name, value in tensors.items():
        np.testing.assert_array_equal(kept[name], value)


def test_read_tensors_leave_memory(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(8 << 20, i, np.float32) for i in range(8)}  # 32 MiB each
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    tensors.clear()
    file = TensorFile(tmp_path / "x.safetensors")
    before = memory.measure().file_bytes
    for name in file.names():
        assert file.read(name)[0] == float(name[1:])
    assert memory.measure().file_bytes - before < 160 << 20
