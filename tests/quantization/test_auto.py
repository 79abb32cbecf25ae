"""`auto` takes the best that is estimated to fit the time there is, and says what it took and why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from zeropoint import algorithms, quantize
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.cli.main import main
from zeropoint.errors import UsageError
from zeropoint.quantization import auto
from zeropoint.values.plan import Plan

Tiny = Callable[[str], Path]


@pytest.fixture
def checkpoint(tiny_checkpoint: Tiny) -> Checkpoint:
    return open_checkpoint(tiny_checkpoint("llama_tied"))


@pytest.fixture
def paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that rounds in 2 s, and takes a block 1 s, 4 s by `good`, 9 s by `best`, and 1 ms for each token."""

    def seconds(_checkpoint: Checkpoint, plan: Plan, tokens: int) -> float:
        ways = [(choice.algorithm, dict(choice.options)) for choice in plan.choices.values()]
        fixed = {4: "good", 9: "best"}
        known = [each for each, name in fixed.items() if algorithms.resolve(name, {}) in ways]
        return (known or [1])[0] + tokens / 1000

    monkeypatch.setattr(auto, "rounding_seconds", lambda *_: 2.0)
    monkeypatch.setattr(auto, "block_seconds", seconds)


@pytest.mark.usefixtures("paced")
@pytest.mark.parametrize(
    ("budget", "algorithm", "tokens", "seconds"),
    [
        (3, "rtn", 0, 2),
        (37, "gptq", 16384, 2 + 2 * (1 + 16.384)),  # the model has two blocks
        (21, "gptq", 8192, 2 + 2 * (1 + 8.192)),
        (145, "good", 65536, 2 + 2 * (4 + 65.536)),
        (1000, "best", 65536, 2 + 2 * (9 + 65.536)),
    ],
)
def test_the_best_that_fits_is_taken(
    checkpoint: Checkpoint, budget: float, algorithm: str, tokens: int, seconds: float
) -> None:
    found = auto.pick(checkpoint, "int4", budget)
    assert (found.algorithm, dict(found.options)) == algorithms.resolve(algorithm, {})
    assert found.tokens == tokens
    assert found.seconds == pytest.approx(seconds, rel=1e-3)
    assert f"about {seconds:.0f} s of {budget:.0f}" in found.reason
    assert ("would take about" in found.reason) == (algorithm != "best")


@pytest.mark.usefixtures("paced")
def test_the_text_may_be_given(checkpoint: Checkpoint) -> None:
    found = auto.pick(checkpoint, "int4", 7, tokens=1000)
    assert (found.algorithm, found.tokens) == ("gptq", 1000)


@pytest.mark.usefixtures("paced")
def test_when_nothing_fits_the_reason_says_so(checkpoint: Checkpoint) -> None:
    found = auto.pick(checkpoint, "int4", 1)
    assert (found.algorithm, found.tokens) == ("rtn", 0)
    assert "still about 2 s of 1" in found.reason
    with pytest.raises(UsageError, match="positive"):
        auto.pick(checkpoint, "int4", -1)


def test_a_model_without_anything_to_observe_is_rounded(checkpoint: Checkpoint) -> None:
    found = auto.pick(checkpoint, "fp16", 1000)
    assert found.algorithm == "rtn"
    assert "no weight of the blocks is quantized" in found.reason


def test_the_pace_is_measured(checkpoint: Checkpoint) -> None:
    pace = auto.measure_pace(checkpoint, "int4", "gptq")
    assert pace.seconds(2000) >= pace.seconds(1000) > 0


@pytest.mark.parametrize(
    ("short", "long", "expected"), [(3.0, 7.0, auto.Pace(1.0, 2 / 1024)), (3.0, 2.0, auto.Pace(3.0, 0.0))]
)
def test_the_pace_comes_from_two_timings(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, short: float, long: float, expected: auto.Pace
) -> None:
    seconds = {auto.SHORT: short, auto.LONG: long}
    monkeypatch.setattr(auto, "block_seconds", lambda *args: seconds[args[-1]])
    assert auto.measure_pace(checkpoint, "int4", "gptq") == expected


@pytest.mark.usefixtures("paced")
def test_nothing_slower_is_measured_than_the_first_that_does_not_fit(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    measure = auto.measure_pace
    monkeypatch.setattr(auto, "measure_pace", lambda *args: (asked.append(args[-1]), measure(*args))[1])
    assert auto.pick(checkpoint, "int4", 21).algorithm == "gptq"
    assert asked == ["gptq"]
    auto.pick(checkpoint, "int4", 140)
    assert asked == ["gptq", "gptq", "good"]


def test_the_command_says_what_was_picked(
    checkpoint: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["quantize", str(checkpoint.path), "--format", "int4", "-o"]
    budget = ["--algorithm", "auto", "--time-budget"]
    assert main([*arguments, str(tmp_path / "a"), *budget, "0.000001"]) == 0
    assert "auto: rtn: the fastest, and still" in capsys.readouterr().out
    assert main([*arguments, str(tmp_path / "b"), "--time-budget", "5"]) == 2
    assert main([*arguments, str(tmp_path / "b"), *budget, "5", "--option", "sweeps=1"]) == 2
    assert main([*arguments, str(tmp_path / "b"), *budget, "5", "--resume"]) == 2
    assert main([*arguments, str(tmp_path / "b"), "--algorithm", "best", "--calibration-tokens", "256"]) == 0
    choices = json.loads((tmp_path / "b" / "zeropoint.json").read_text())["plan"]["choices"]
    assert algorithms.resolve("best", {})[0] in {choice["algorithm"] for choice in choices.values()}
    made = quantize(checkpoint.path, tmp_path / "c", format="int4", algorithm="auto", time_budget=1e-6)
    assert made.calibration is None
    with pytest.raises(UsageError, match="time budget"):
        quantize(checkpoint.path, tmp_path / "d", time_budget=1.0)
