"""A reference model that runs block by block gives the numbers of one that is whole in memory, to the last bit."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.evaluate.worker.test_reference_cache import Gate, int8  # noqa: F401
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.evaluate import check, compare, needs
from zeropoint.evaluate.worker import hidden_states
from zeropoint.evaluate.worker.hidden_states import HiddenStates
from zeropoint.evaluate.worker.streamed_model import StreamedModel
from zeropoint.machine.detect import Machine
from zeropoint.predictions import Need
from zeropoint.quantization.block_runner import Block


@pytest.fixture
def gate(
    tiny_checkpoint: Callable[[str], Path],
    int8: Callable[[str], Path],  # noqa: F811
    tmp_path: Path,
    text_file: str,
) -> Callable[[str], Gate]:
    return lambda family: Gate(tiny_checkpoint(family), int8(family), text_file, tmp_path / "kept")


def free(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    """Let the machine have this much free memory."""
    machine = dataclasses.replace(Machine.detect(), ram_available_bytes=nbytes)
    monkeypatch.setattr(Machine, "detect", classmethod(lambda _cls: machine))


@pytest.mark.parametrize("family", ["llama_tied", "gpt2", "gemma2", "opt", "mixtral"])
def test_the_numbers_are_those_of_the_model_in_memory(gate: Callable[[str], Gate], family: str) -> None:
    streamed, whole = gate(family), gate(family)
    whole.keep = None
    expected = whole()
    assert streamed(streamed=True) == expected
    assert streamed.opened == ["artifact"]
    assert streamed(streamed=True) == expected


def test_what_it_keeps_serves_gates_of_both_kinds(gate: Callable[[str], Gate]) -> None:
    run = gate("llama_tied")
    expected = run(streamed=True)
    assert run.keep is not None
    assert [file.name.split("-")[0] for file in run.keep.iterdir()] == ["reference"]
    assert run() == expected
    assert run.opened == ["artifact"]


def test_an_interrupted_run_continues(gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch) -> None:
    run = gate("llama_tied")
    blocks: list[int] = []
    plain_run, plain_write = Block.run, HiddenStates.write

    def counted(self: Block, hidden: torch.Tensor) -> torch.Tensor:
        blocks.append(self.number)
        return plain_run(self, hidden)

    def interrupted(self: HiddenStates, done: int, states: Any, *, is_last: bool) -> None:
        plain_write(self, done, states, is_last=is_last)
        raise KeyboardInterrupt

    monkeypatch.setattr(Block, "run", counted)
    monkeypatch.setattr(HiddenStates, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(streamed=True)
    assert set(blocks) == {0}
    monkeypatch.setattr(HiddenStates, "write", plain_write)
    windows = blocks.count(0)
    blocks.clear()
    result = run(streamed=True)
    assert blocks[:windows] == [1] * windows
    run.keep = None
    assert result == run()


def test_damaged_states_are_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    states = [torch.randn(1, 3, 4).to(dtype) for dtype in [torch.bfloat16] * 2]
    kept = HiddenStates(tmp_path / "kept", {"model": "m"})
    kept.write(5, states, is_last=False)
    found = HiddenStates(tmp_path / "kept", {"model": "m"}).read()
    assert found is not None
    assert found[0] == 5
    assert all(map(torch.equal, found[1], states))
    assert HiddenStates(tmp_path / "kept", {"model": "other"}).read() is None
    (file,) = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    for damaged in (whole[:-1], whole + b"x", bytes(flipped), b"", b"x\n{}\n", b"x\n[]\n"):
        file.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            assert kept.read() is None
        assert "are not used" in caplog.text
        caplog.clear()
    kept.forget()
    assert not list((tmp_path / "kept").iterdir())


def test_states_are_bounded_and_old_ones_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.zeros(1, 2, 2)]
    for number in range(6):
        HiddenStates(tmp_path / "kept", {"number": number}).write(1, states, is_last=True)
    assert len(list((tmp_path / "kept").iterdir())) == hidden_states.MOST_FILES
    monkeypatch.setattr(hidden_states, "ABANDONED", -60)
    HiddenStates(tmp_path / "kept", {"number": 6}).write(1, states, is_last=True)
    assert len(list((tmp_path / "kept").iterdir())) == 1
    monkeypatch.setattr(hidden_states, "MOST_BYTES", 8)
    HiddenStates(tmp_path / "kept", {"number": 7}).write(1, states, is_last=True)
    HiddenStates(None, {}).write(1, states, is_last=True)
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_a_model_without_blocks_in_a_row_is_run_in_memory_or_refused(
    gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_args: Any) -> None:
        raise UnsupportedError("this model cannot be run block by block (why)")

    run = gate("llama_tied")
    monkeypatch.setattr(StreamedModel, "run", refuse)
    result = run(streamed=True)
    assert "float32" in run.opened
    run.keep = None
    assert result == run()
    monkeypatch.setattr(needs, "streams", lambda *_args, **_options: False)  # the request says `streamed`
    free(monkeypatch, 1000)
    with pytest.raises(
        UnsupportedError, match=r"\(why\), and in float32 it needs about 0\.\d GB of memory, of which"
    ):
        run(streamed=True)


def test_check_streams_where_the_model_does_not_fit(
    gate: Callable[[str], Gate], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = gate("llama_tied")
    source, artifact = (model.path for model in run._models)
    options: dict[str, Any] = {"text": run._text, "tokens": 200, "context": 64, "threads": 1}
    needed = {True: 2_000_000_000, False: 4_000_000_000}
    monkeypatch.setattr(needs, "reference_in_memory", lambda *_: Need(needed[False]))
    monkeypatch.setattr(needs, "reference_streamed", lambda *_: Need(needed[True]))
    asked: list[bool] = []
    stream = needs.streams
    monkeypatch.setattr(needs, "streams", lambda *a, **k: asked.append(stream(*a, **k)) or asked[-1])
    free(monkeypatch, 3_000_000_000)
    streamed = check(artifact, source, **options)
    with pytest.raises(UsageError, match=r"in float32 needs about 4\.0 GB .* 3\.0 GB are free: .*--stream"):
        check(artifact, source, streamed=False, **options)
    free(monkeypatch, 5_000_000_000)
    assert check(artifact, source, **options) == streamed
    assert asked == [True, False]
    free(monkeypatch, 1_000_000_000)
    with pytest.raises(
        UsageError, match=r"needs about 2\.0 GB of memory, of which 1\.0 GB are free: .*--tokens"
    ):
        check(artifact, source, **options)


def test_compare_gives_the_same_report(gate: Callable[[str], Gate]) -> None:
    run = gate("llama_tied")
    source, artifact = (model.path for model in run._models)
    reports = [
        compare(
            source,
            [artifact],
            text=run._text,
            tokens=200,
            context=64,
            threads=1,
            prompts=["Hello"],
            answer_tokens=3,
            speed=False,
            streamed=streamed,
        )
        for streamed in (False, True)
    ]
    assert reports[0].measurements == reports[1].measurements
    assert reports[0].extra == reports[1].extra
    assert len(reports[1].extra["answers"][0]["answers"]) == 2
