"""Once through the real runtime and a real artifact, in one measuring process."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import forked
from zeropoint.checkpoint import open_checkpoint
from zeropoint.cli.main import main
from zeropoint.evaluate import check
from zeropoint.planning import uniform_plan
from zeropoint.quantization import quantize_checkpoint


def test_an_int8_artifact_is_close_to_its_model(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, text_file: str
) -> None:
    source = tiny_checkpoint("llama_tied")
    checkpoint = open_checkpoint(str(source))
    quantize_checkpoint(checkpoint, tmp_path / "int8", plan=uniform_plan(checkpoint, "int8"))
    with forked.new_processes():
        verdict = check(
            str(tmp_path / "int8"), str(source), text=text_file, tokens=400, context=64, threads=1
        )
    assert verdict.passed, verdict.sentences()
    assert 0 < verdict.bounds[0].value < 0.01
    assert verdict.bounds[0].bound == 0.03
    assert verdict.scored_tokens >= 400


@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install -e '.[tasks]')"
)
@pytest.mark.parametrize("engine", ["native", "universal"])
def test_tasks_are_answered_by_real_runtimes(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, text_file: str, engine: str
) -> None:
    source = tiny_checkpoint("llama_tied")
    checkpoint = open_checkpoint(str(source))
    out = tmp_path / "int8"
    quantize_checkpoint(checkpoint, out, plan=uniform_plan(checkpoint, "int8"))
    tasks = Path(__file__).parents[2] / "examples" / "data" / "tasks"
    command = ["check", str(out), "--against", str(source), "--engine", engine, "--text", text_file]
    command += ["--tokens", "400", "--threads", "1", "--json", str(tmp_path / "verdict.json")]
    command += ["--tasks", f"{tasks / 'adjective_order.yaml'},{tasks / 'science_fact.yaml'}", "--limit", "25"]
    assert main([*command, "--max-accuracy-drop", "30%"]) == 0
    found = json.loads((tmp_path / "verdict.json").read_text())
    assert [row["metric"] for row in found["bounds"]] == [
        "accuracy_drop adjective_order",
        "accuracy_drop science_fact",
    ]
    assert [task["paired"]["n"] for task in found["tasks"]] == [25, 25]
    card = json.loads((out / "zeropoint.json").read_text())
    assert card["verdict"]["tasks"] == found["tasks"]


def test_task_options_need_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "a", "--against", "b", "--max-accuracy-drop", "2%"]) == 2
    assert "need --tasks" in capsys.readouterr().err
