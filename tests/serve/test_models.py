"""Several models of one server: loading, the memory budget, unloading, and changed files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.serve.drive import Answer
from zeropoint import quantize
from zeropoint.errors import ArtifactError, BusyError, CheckpointError, UnsupportedError, UsageError
from zeropoint.serve.engine import EngineOptions
from zeropoint.serve.models import ServedModel, open_models
from zeropoint.serve.request import CANCELLED, LENGTH, Finished, Request

OPTIONS = EngineOptions(cache_tokens=512, max_running=4)


@pytest.fixture(scope="module")
def folders(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder, checkpoint = tmp_path_factory.mktemp("models"), tiny_checkpoint("llama_tied")
    quantize(checkpoint, folder / "int8", format="int8")
    return {"fp32": checkpoint, "int8": folder / "int8"}


def ask(model: ServedModel, new_tokens: int = 3) -> Answer:
    answer = Answer(Request((1, 2, 3), new_tokens))
    answer.ticket = model.submit(answer.request, answer)
    return answer


def test_models_are_known_before_they_are_loaded(folders: dict[str, Path]) -> None:
    models = open_models({**folders, "again": folders["int8"]}, OPTIONS)
    fp32, int8, again = models.by_name.values()
    assert (fp32.format, int8.format) == ("FP32", "int8")
    assert not any(model.loaded for model in (fp32, int8, again))
    assert fp32.weights_bytes > int8.weights_bytes > 0
    assert (int8.vocab_size, int8.max_positions) == (260, 128)
    assert int8.tokenizer is fp32.tokenizer
    assert int8.memory_bytes == 0
    assert int8.stats().pages == 0
    answers = [ask(model).wait() for model in (fp32, int8, int8)]
    assert all(answer.end == Finished(LENGTH) for answer in answers)
    assert answers[1].tokens == answers[2].tokens
    assert int8.loaded
    assert not again.loaded
    assert int8.memory_bytes > int8.weights_bytes // 2
    assert int8.stats().new_tokens == 6
    models.drain(0)


def test_the_context_can_be_limited(folders: dict[str, Path]) -> None:
    models = open_models({"m": folders["int8"]}, replace(OPTIONS, context=100))
    model = models.by_name["m"]
    assert model.max_positions == 100
    model.load()
    with pytest.raises(UsageError, match="100 that fit"):
        ask(model, 98)
    models.drain(0)


def test_idle_models_make_room(folders: dict[str, Path]) -> None:
    several = {"a": folders["int8"], "b": folders["int8"], "c": folders["int8"]}
    one = open_models({"a": folders["int8"]}, OPTIONS).by_name["a"].needed_bytes
    models = open_models(several, OPTIONS, memory_bytes=one * 5 // 2)
    a, b, c = models.by_name.values()
    for model in (a, b, a, c):  # b is the least recently used one
        ask(model).wait()
    assert [model.loaded for model in (a, b, c)] == [True, False, True]
    assert b.stats().new_tokens == 3
    ask(b).wait()
    assert b.stats().new_tokens == 6
    models.drain(0)


def test_busy_models_stay(folders: dict[str, Path]) -> None:
    options = EngineOptions(cache_tokens=1024, max_running=1)
    one = open_models({"a": folders["int8"]}, options).by_name["a"].needed_bytes
    models = open_models({"a": folders["int8"], "b": folders["int8"]}, options, memory_bytes=one * 3 // 2)
    a, b = models.by_name.values()
    waiting = [ask(a, 120) for _ in range(50)]
    with pytest.raises(BusyError, match="no memory for b while a is in use"):
        ask(b)
    models.drain(0)
    assert {answer.end.reason for answer in waiting} >= {CANCELLED}
    with pytest.raises(BusyError, match="shutting down"):
        ask(a)
    with pytest.raises(BusyError, match="shutting down"):
        ask(b)


def test_a_model_beyond_the_budget_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match=r"big needs .* the limit is 0 MiB"):
        open_models({"big": folders["int8"]}, OPTIONS, memory_bytes=1000)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "zeropoint.json"])
def test_a_changed_file_is_noticed(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(folders["int8"], folder)
    models = open_models({"m": folder}, OPTIONS)
    model = models.by_name["m"]
    ask(model).wait()
    os.utime(folder / name, (0, 0))
    with pytest.raises(ArtifactError, match="files of the model m changed"):
        ask(model)
    (folder / name).unlink()
    with pytest.raises(ArtifactError, match="files of the model m changed"):
        ask(model)
    models.drain(0)


def test_models_that_cannot_be_served(tmp_path: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    with pytest.raises(UnsupportedError, match="needs the native engine, and"):
        open_models({"m": tiny_checkpoint("bloom")}, OPTIONS)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises((CheckpointError, UnsupportedError)):
        open_models({"m": tmp_path}, OPTIONS)
