"""A kept reference gives the numbers of one that is run, to the last bit, and is never taken for another."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zeropoint.checkpoint import open_checkpoint
from zeropoint.evaluate.compare import quality_request
from zeropoint.evaluate.gate.check import check
from zeropoint.evaluate.model_description import describe
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker import process as worker
from zeropoint.evaluate.worker import reference_cache as references
from zeropoint.evaluate.worker.messages import QualityResult
from zeropoint.planning import uniform_plan
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime import open_runner


class Gate:
    """The worker's quality run of one artifact, in this process; `opened` are the types each run opened."""

    def __init__(self, source: Path, artifact: Path, text: str, keep: Path | None) -> None:
        self._models, self._text, self.keep = describe(str(source), [str(artifact)]), text, keep
        self.opened: list[str] = []

    def __call__(self, **changes: Any) -> QualityResult:
        request = quality_request(
            self._models, engine="auto", threads=1, text=self._text, tokens=400, context=64, seed=0
        )
        keep = None if self.keep is None else str(self.keep)
        request = dataclasses.replace(request, keep=keep, **changes)
        self.opened.clear()
        found = worker.quality(request, self._open, lambda what, done: None)
        # `runs` are those of the models that were opened, which is where a kept reference differs
        return dataclasses.replace(found, runs={}, candidates=dict(sorted(found.candidates.items())))

    def _open(self, path: str, *, dtype: str, **options: Any) -> Any:
        self.opened.append(dtype if path == self._models[0].path else "artifact")
        return open_runner(path, dtype=dtype, **options)


@pytest.fixture(scope="module")
def int8(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function: `int8("gpt2")` returns the folder of that tiny checkpoint's INT8 artifact."""
    root = tmp_path_factory.mktemp("int8")

    def get(family: str) -> Path:
        out = root / family
        if not out.exists():
            checkpoint = open_checkpoint(str(tiny_checkpoint(family)))
            quantize_checkpoint(checkpoint, out, plan=uniform_plan(checkpoint, "int8"))
        return out

    return get


@pytest.fixture
def make(
    tiny_checkpoint: Callable[[str], Path], int8: Callable[[str], Path], tmp_path: Path, text_file: str
) -> Callable[..., Gate]:
    def made(family: str = "llama_tied", *, keep: bool = True) -> Gate:
        return Gate(tiny_checkpoint(family), int8(family), text_file, tmp_path / "kept" if keep else None)

    return made


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_a_kept_reference_gives_the_same_numbers(make: Callable[..., Gate], family: str) -> None:
    gate, plain = make(family), make(family, keep=False)
    expected = plain()
    assert gate() == expected
    assert "float32" in gate.opened
    assert gate() == expected
    assert gate.opened == ["artifact"]


def test_another_request_is_another_reference(make: Callable[..., Gate]) -> None:
    gate, plain = make(), make(keep=False)
    gate()
    for changes in ({"seed": 1}, {"tokens": 300}, {"context": 32}, {"threads": 2}, {"resamples": 500}):
        assert gate(**changes) == plain(**changes), changes
        assert "float32" in gate.opened, changes


def test_another_model_is_another_reference(make: Callable[..., Gate]) -> None:
    make()()
    other = make("qwen2")
    other()
    assert "float32" in other.opened


def test_damage_is_said_and_mended(make: Callable[..., Gate], caplog: pytest.LogCaptureFixture) -> None:
    gate = make()
    expected = gate()
    assert gate.keep is not None
    (file,) = gate.keep.iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    for damaged in (whole[:-8], bytes(flipped), b"", b"x\n{}\n"):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert gate() == expected
        assert "runs again" in caplog.text
        caplog.clear()
        assert file.read_bytes() == whole


def test_a_model_that_changes_its_logits_after_the_head_is_run_each_time(make: Callable[..., Gate]) -> None:
    gate, plain = make("gemma2"), make("gemma2", keep=False)
    expected = plain()
    for _ in range(2):
        assert gate() == expected
        assert "float32" in gate.opened
    assert gate.keep is not None
    assert not gate.keep.exists()


def test_a_folder_that_takes_nothing_is_no_obstacle(
    make: Callable[..., Gate], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate, plain = make(), make(keep=False)
    (tmp_path / "file").write_text("")
    gate.keep = tmp_path / "file" / "kept"
    with caplog.at_level(logging.WARNING):
        assert gate() == plain()
    assert "not cached" in caplog.text


def test_the_oldest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references, "MOST_FILES", 2)
    kept = references.Kept("head", np.ones((1, 2, 3), np.float32), {"auto": {"value": 0.5}})
    for number in range(3):
        references.write(tmp_path, {"number": number}, kept)
    assert references.read(tmp_path, {"number": 0}) is None
    found = references.read(tmp_path, {"number": 2})
    assert found is not None
    assert (found.inputs == kept.inputs).all()
    assert found.entries == kept.entries
    monkeypatch.setattr(references, "MOST_BYTES", 8)
    references.write(tmp_path, {"number": 3}, kept)
    assert references.read(tmp_path, {"number": 3}) is None


def test_check_keeps_what_it_is_told_to(
    make: Callable[..., Gate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = make()
    source, out = (model.path for model in gate._models)
    seen: list[Any] = []
    call = client.call
    monkeypatch.setattr(client, "call", lambda request, **o: seen.append(request.keep) or call(request, **o))
    first, second = (
        check(out, source, text=gate._text, tokens=400, context=64, threads=1, keep=tmp_path / "kept")
        for _ in range(2)
    )
    assert first == second
    assert seen == [str(tmp_path / "kept")] * 2
    assert len(list((tmp_path / "kept").iterdir())) == 1
