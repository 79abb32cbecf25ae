"""Hub models that hold GGUF files only: one file is taken, several are listed, and each has a name."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.utils import filter_repo_objects

import zeropoint
from tests.support.tiny import write_tokenizer
from zeropoint.cli.main import main
from zeropoint.errors import CheckpointError
from zeropoint.runtime import open_runner
from zeropoint.sources import locate, open_source

Tiny = Callable[[str], Path]


class Hub:
    """A hub whose models are folders of `remote`, and its client's cache, `cache`."""

    def __init__(self, folder: Path) -> None:
        self.remote, self.cache = folder / "remote", folder / "cache"
        self.offline = False

    def add(self, name: str, files: Iterable[str], content: Path | None = None) -> None:
        for file in files:
            path = self.remote / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"GGUF" if content is None else content.read_bytes())

    def files(self, name: str, revision: str | None = None) -> list[str]:
        if self.offline or not (self.remote / name).is_dir():
            raise OSError("no connection")
        folder = self.remote / name
        return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())

    def fetch(self, name: str, *, revision: str | None, allow_patterns: Sequence[str]) -> str:
        folder = self.cache / name
        if self.offline:
            if not folder.is_dir():
                raise OSError("no connection")
            return str(folder)
        for file in filter_repo_objects(self.files(name), allow_patterns=list(allow_patterns)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.remote / name / file, folder / file)
        return str(folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    hub = Hub(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.fetch)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", hub.files)
    return hub


@pytest.fixture(scope="module")
def gguf(tiny_checkpoint: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf")
    shutil.copytree(tiny_checkpoint("llama_untied"), folder / "model")
    write_tokenizer(folder / "model", [("t", "h")])
    zeropoint.quantize(folder / "model", folder / "int8", format="int8:g32:sym:fp16")
    zeropoint.export(folder / "int8", "gguf", folder / "tiny.gguf", verify=False)
    return folder / "tiny.gguf"


@pytest.mark.parametrize("others", [[], ["README.md"], ["README.md", "config.json", "tokenizer.json"]])
def test_the_only_file_is_taken(others: list[str], hub: Hub, gguf: Path) -> None:
    hub.add("a/b-GGUF", others)
    hub.add("a/b-GGUF", ["b-Q8_0.gguf"], gguf)
    assert locate("a/b-GGUF") == hub.cache / "a/b-GGUF/b-Q8_0.gguf"
    expected = open_runner(gguf, threads=1).logits(np.arange(8))
    assert np.array_equal(open_runner("a/b-GGUF", threads=1).logits(np.arange(8)), expected)
    assert open_source("a/b-GGUF").name == "a/b-GGUF"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["b-Q4_K_M.gguf", "b-Q8_0.gguf"], "such as a/b/b-Q4_K_M.gguf; it has b-Q4_K_M.gguf, b-Q8_0.gguf"),
        (["Q4/b.gguf", "Q8/b.gguf", "README.md"], "such as a/b/Q4/b.gguf; it has Q4/b.gguf, Q8/b.gguf"),
        (
            ["Q4/b-00001-of-00002.gguf", "Q4/b-00002-of-00002.gguf", "Q8/b-00001-of-00002.gguf"],
            "it has Q4/b-00001-of-00002.gguf, Q8/b-00001-of-00002.gguf",
        ),
        ([f"b-{each:02d}.gguf" for each in range(12)], "b-06.gguf, b-07.gguf and 4 more"),
    ],
)
def test_several_files_are_listed(
    files: list[str], said: str, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("a/b", files)
    with pytest.raises(CheckpointError, match=re.escape(said) + "$") as raised:
        locate("a/b")
    assert re.search(r"a/b holds \d+ GGUF files and no safetensors: give one of them", str(raised.value))
    assert main(["inspect", "a/b"]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert not hub.cache.exists()


@pytest.mark.parametrize("file", ["b-Q8_0.gguf", "Q8 [new]/b.gguf"])
def test_a_file_has_a_name(file: str, hub: Hub, gguf: Path) -> None:
    hub.add("a/b", ["b-Q4_0.gguf", file], gguf)
    assert locate(f"a/b/{file}") == hub.cache / "a/b" / file
    assert [path.suffix for path in hub.cache.rglob("*") if path.is_file()] == [".gguf"]
    assert open_runner(f"a/b/{file}", threads=1).vocab_size == 260
    hub.offline = True
    assert locate(f"a/b/{file}") == hub.cache / "a/b" / file


def test_all_parts_of_a_file_are_fetched(hub: Hub) -> None:
    parts = [f"Q8/b-0000{each}-of-00003.gguf" for each in (1, 2, 3)]
    hub.add("a/b", [*parts, "b-Q4_0.gguf"])
    assert locate(f"a/b/{parts[1]}") == hub.cache / "a/b" / parts[1]
    assert sorted(path.name for path in (hub.cache / "a/b/Q8").iterdir()) == [
        Path(each).name for each in parts
    ]
    assert not (hub.cache / "a/b/b-Q4_0.gguf").exists()


def test_a_name_that_is_no_file(hub: Hub) -> None:
    hub.add("a/b", ["b-Q4_0.gguf"])
    with pytest.raises(
        CheckpointError, match=r"has no file c\.gguf: give one of them, such as a/b/b-Q4_0\.gguf; it"
    ):
        locate("a/b/c.gguf")
    with pytest.raises(CheckpointError, match=r"a/missing .*could not be fetched"):
        locate("a/missing/c.gguf")
    for name in ("./a/b/c.gguf", "/a/b/c.gguf", "~/a/b/c.gguf", "a/b/../c.gguf", "c.gguf", "b/c.gguf"):
        with pytest.raises(CheckpointError, match="does not exist"):
            locate(name)


def test_a_model_with_safetensors_is_no_gguf_model(hub: Hub, tiny_checkpoint: Tiny) -> None:
    shutil.copytree(tiny_checkpoint("llama_tied"), hub.remote / "a/b")
    hub.add("a/b", ["b-Q4_0.gguf", "b-Q8_0.gguf"])
    assert locate("a/b") == hub.cache / "a/b"
    assert not any(hub.cache.rglob("*.gguf"))


def test_a_model_without_weights(hub: Hub) -> None:
    hub.add("a/b", ["README.md"])
    with pytest.raises(CheckpointError, match="holds neither safetensors nor GGUF files"):
        locate("a/b")
    hub.add("a/c", ["config.json", "pytorch_model.bin"])
    assert locate("a/c") == hub.cache / "a/c"
