"""A run that was interrupted, at any moment and in any way, goes on to the bytes of an undisturbed one."""

from __future__ import annotations

import json
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import forked
from tests.support.tiny import make_checkpoint
from zeropoint import quantize
from zeropoint.errors import ArtifactError, UsageError
from zeropoint.quantization import WeightDone, run_checkpoint

Tiny = Callable[[str], Path]

FORMATS = {"smoothquant+gptq": "int8:channel:sym:bf16:a8token"}


def run(source: Path, out: Path, algorithm: str, **more: object) -> None:
    """One whole run, fit to be killed from outside."""
    format = FORMATS.get(algorithm, "int4")
    quantize(source, out, format=format, algorithm=algorithm, calibration_tokens=1024, **more)  # type: ignore[arg-type]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name.startswith("."))


@pytest.mark.parametrize("algorithm", ["gptq", "smoothquant+gptq"])
def test_killed_at_random_moments(algorithm: str, tmp_path: Path) -> None:
    source = make_checkpoint("llama_tied", tmp_path / "source", layers=8, outliers=True)

    def start(out: Path, *, resume: bool) -> multiprocessing.process.BaseProcess:
        child = forked.CONTEXT.Process(target=run, args=(source, out, algorithm), kwargs={"resume": resume})
        child.start()
        return child

    whole = tmp_path / "whole"
    start(whole, resume=False).join()  # the first one waits for the server
    began = time.monotonic()
    again = start(tmp_path / "again", resume=False)
    again.join()
    assert again.exitcode == 0
    seconds = time.monotonic() - began
    assert files(tmp_path / "again") == files(whole)

    moments, kills, resumed = random.Random(0), 0, 0
    for number in range(100):
        out = tmp_path / f"out-{number}"
        while not out.exists() and kills < 10:
            child = start(out, resume=True)
            child.join(moments.uniform(0.1, 1) * seconds)
            child.kill()
            child.join()
            kills += child.exitcode == -signal.SIGKILL
            resumed += run_checkpoint.is_unfinished(out)
        if kills >= 10:
            break
    last = start(out, resume=True)
    last.join()
    assert last.exitcode == 0
    assert kills == 10
    assert resumed  # some were killed behind a finished block
    for out in tmp_path.glob("out-*"):
        if run_checkpoint.is_unfinished(out):  # killed between the last rename and the end
            run(source, out, algorithm, resume=True)
        assert files(out) == files(whole)
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        ("llama_tied", "gptq"),
        ("llama_tied", "smoothquant+gptq"),
        ("llama_untied", "gptq+rounding+distill"),
        ("gpt2", "awq+gptq"),
        ("mixtral", "awq+rounding"),
    ],
)
def test_interrupted_after_any_weight(
    name: str, algorithm: str, tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind every weight, one after the other, in a single run that is resumed again and again."""
    monkeypatch.setattr(run_checkpoint, "SHARE", 1e9)
    source, steps, resumed = tiny_checkpoint(name), list[str](), 0
    run(source, tmp_path / "whole", algorithm, progress=lambda step: steps.append(step.name))
    out = tmp_path / "out"
    for number in range(0, len(steps), max(1, len(steps) // 8)):
        seen: list[str] = []

        def interrupt(step: WeightDone, seen: list[str] = seen, number: int = number) -> None:
            seen.append(step.name)
            if len(seen) > number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(source, out, algorithm, resume=True, progress=interrupt)
        resumed += run_checkpoint.is_unfinished(out)
    assert resumed
    run(source, out, algorithm, resume=True)
    assert files(out) == files(tmp_path / "whole")
    assert left_over(tmp_path) == []


@pytest.fixture
def interrupted(tiny_checkpoint: Tiny, tmp_path: Path) -> Path:
    """An output whose run was interrupted behind the first block."""

    def interrupt(step: WeightDone) -> None:
        if step.name.startswith("model.layers.1."):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tiny_checkpoint("llama_tied"), tmp_path / "out", "gptq", progress=interrupt)
    assert left_over(tmp_path) == [".out.unfinished"]
    assert not (tmp_path / "out").exists()
    return tmp_path / "out"


def test_an_interrupted_run_is_not_forgotten(interrupted: Path, tiny_checkpoint: Tiny) -> None:
    source = tiny_checkpoint("llama_tied")
    with pytest.raises(UsageError, match=r"keeps an interrupted run of .*--resume.*--overwrite"):
        run(source, interrupted, "gptq")
    run(source, interrupted, "gptq", overwrite=True)
    assert left_over(interrupted.parent) == []


def test_another_command_does_not_go_on_with_it(interrupted: Path, tiny_checkpoint: Tiny) -> None:
    source = tiny_checkpoint("llama_tied")
    for change, word in (
        ({"algorithm": "awq"}, "plan"),
        ({"seed": 1}, "plan"),
        ({"calibration_tokens": 512}, "calibration"),
        ({"algorithm": "rtn", "calibration_tokens": None}, "plan, calibration"),
        ({"model": tiny_checkpoint("llama_untied")}, "source"),
    ):
        wanted = {"model": source, "algorithm": "gptq", "calibration_tokens": 1024, **change}
        with pytest.raises(UsageError, match=rf"another command \(not the same .*{word}.*--overwrite"):
            quantize(out=interrupted, format="int4", resume=True, **wanted)  # type: ignore[arg-type]
    run(source, interrupted, "gptq", resume=True)


def test_another_machine_is_said(interrupted: Path, tiny_checkpoint: Tiny) -> None:
    path = interrupted.parent / ".out.unfinished" / run_checkpoint.NAME
    data = json.loads(path.read_text())
    data["run"]["machine"] = "another"
    path.write_text(json.dumps(data))
    steps: list[str] = []
    source = tiny_checkpoint("llama_tied")
    summary = quantize(
        source, interrupted, format="int4", algorithm="gptq", calibration_tokens=1024, resume=True,
        progress=lambda step: steps.append(step.name),
    )  # fmt: skip
    assert (summary.resumed, len(steps)) == (1, len(summary.plan.choices))
    assert [line for line in summary.warnings if "another machine" in line]


@pytest.mark.parametrize("which", [run_checkpoint.NAME, "weights-", "states-"])
def test_damage_is_said(which: str, interrupted: Path, tiny_checkpoint: Tiny) -> None:
    path = next(interrupted.parent.glob(f".out.unfinished/{which}*"))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match=r"is damaged|is truncated|not valid JSON"):
        run(tiny_checkpoint("llama_tied"), interrupted, "gptq", resume=True)
    run(tiny_checkpoint("llama_tied"), interrupted, "gptq", overwrite=True)
    assert left_over(interrupted.parent) == []


def test_two_processes_do_not_share_a_run(interrupted: Path, tiny_checkpoint: Tiny) -> None:
    with (
        run_checkpoint.RunCheckpoint(interrupted, run_checkpoint.Run("", "", "", "", ""))._locked(),
        pytest.raises(UsageError, match="another process"),
    ):
        run(tiny_checkpoint("llama_tied"), interrupted, "gptq", resume=True)


def test_what_is_finished_is_found(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Killed between the artifact's last rename and the end of the process."""
    source, out = tiny_checkpoint("gpt2"), tmp_path / "out"
    first = quantize(source, out, format="int4", algorithm="gptq", calibration_tokens=512, resume=True)
    assert first.resumed == 0  # nothing was kept: it began
    run_checkpoint.folder_of(out).mkdir()
    second = quantize(source, out, format="int4", algorithm="gptq", calibration_tokens=512, resume=True)
    assert second.resumed == 2
    assert left_over(tmp_path) == []
    assert (second.warnings, second.layer_errors) == (first.warnings, first.layer_errors)
    with pytest.raises(UsageError, match=r"another command \(not the same plan, calibration\)"):
        quantize(source, out, format="int4", resume=True)


def test_abandoned_folders_are_removed(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    for name in (".out.partial-0", ".out.retired-0", ".other.partial-0"):
        (tmp_path / name).mkdir()
    quantize(tiny_checkpoint("gpt2"), tmp_path / "out")
    # The retired one may be all that is left of an old artifact.
    assert left_over(tmp_path) == [".other.partial-0", ".out.retired-0"]
    quantize(tiny_checkpoint("gpt2"), tmp_path / "out", overwrite=True)
    assert left_over(tmp_path) == [".other.partial-0"]
