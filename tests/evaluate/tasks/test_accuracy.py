"""Pairing of answers and the gate on accuracy, with a stub in place of lm-eval."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.evaluate.conftest import STUB_COMMAND
from zeropoint.errors import UsageError, ZeropointError
from zeropoint.evaluate import TaskRequest, check
from zeropoint.evaluate.gate.bounds import judge_accuracy
from zeropoint.evaluate.tasks.accuracy import TaskResult, pair
from zeropoint.evaluate.tasks.task_files import load, task_files
from zeropoint.evaluate.worker import client


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setitem(client.call.__kwdefaults__, "command", (*STUB_COMMAND, "without-lm-eval"))
    paths = []
    for name in ("tiny", "tiny+0.05", "tiny+3"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"dtype": "float32"}))
        if "+" in name:
            (folder / "zeropoint.json").write_text(json.dumps({"plan": {"label": "int8", "choices": {}}}))
            save_file({"a.weight": np.zeros((2, 2), np.int8)}, folder / "model.safetensors")
        paths.append(str(folder))
    return paths


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks of 120 questions with two choices."""
    rng = np.random.default_rng(0)
    where = tmp_path / "tasks"
    where.mkdir()
    for name in ("first", "second"):
        words = ["".join(map(chr, rng.integers(97, 123, 4))) for _ in range(360)]
        rows = [
            {"context": words[i], "choices": words[i + 1 : i + 3], "answer": int(rng.integers(2))}
            for i in range(0, 360, 3)
        ]
        (where / f"{name}.yaml").write_text(f"task: {name}\n")
        (where / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (where / "_shared.yaml").write_text("output_type: multiple_choice\n")
    return where


def answers(correct: list[int], items: list[str] | None = None) -> dict[str, object]:
    return {"metric": "acc", "items": items or [str(i) for i in range(len(correct))], "correct": correct}


def result(losses: int, gains: int, n: int) -> TaskResult:
    before = [1] * losses + [0] * gains + [1] * (n - losses - gains)
    after = [0] * losses + [1] * gains + [1] * (n - losses - gains)
    return pair("t", answers(before), answers(after))


def test_flips_are_named_by_their_place() -> None:
    found = pair("t", answers([1, 1, 0, 0, 1]), answers([1, 0, 1, 0, 0]))
    assert (found.lost, found.gained) == ((1, 4), (2,))
    assert (found.paired.losses, found.paired.gains) == (2, 1)
    assert "60.0% -> 40.0%, 2 items lost and 1 gained" in found.sentence()
    with pytest.raises(ZeropointError, match="asked different items of t"):
        pair("t", answers([1, 0]), answers([1, 0], ["0", "other"]))


def test_the_upper_end_of_the_drop_decides() -> None:
    (inside,) = judge_accuracy([result(10, 10, 1000)], 0.02)
    (across,) = judge_accuracy([result(10, 10, 200)], 0.02)
    (beyond,) = judge_accuracy([result(60, 5, 1000)], 0.02)
    assert (inside.passed, across.passed, beyond.passed) == (True, False, False)
    assert (across.undecided, beyond.undecided) == (True, False)
    assert "200 items are too few to decide, about" in across.sentence()
    assert judge_accuracy([result(1, 1, 100)], None) == ()


def test_check_with_tasks_pairs_both_models(models: list[str], folder: Path, text_file: str) -> None:
    seen: list[float] = []

    def verdict(artifact: str, limit: int | None = None):  # type: ignore[no-untyped-def]
        return check(
            artifact,
            models[0],
            text=text_file,
            tokens=1000,
            context=64,
            threads=1,
            engine="stub",
            tasks=TaskRequest([folder], limit),
            max_accuracy_drop=0.2,
            progress=lambda _what, done: seen.append(done),
        )

    near, far = verdict(models[1]), verdict(models[2], limit=100)
    assert near.passed
    assert not near.bounds_are_defaults
    assert [b.metric for b in near.bounds] == ["accuracy_drop first", "accuracy_drop second"]
    assert [(t.task, t.paired.n) for t in far.tasks] == [("first", 100), ("second", 100)]
    assert far.tasks[0].paired.losses + far.tasks[0].paired.gains > 20
    assert any("McNemar p = " in sentence for sentence in far.sentences())
    assert near.quality["kl_divergence"]["value"] > 0  # the text is measured all the same
    data = json.loads(json.dumps(far.to_json()))
    assert data["tasks"][0]["paired"]["losses"] == len(data["tasks"][0]["lost"])
    first = seen[: seen.index(max(seen)) + 1]
    assert first == sorted(first)


def test_tasks_without_a_bound_are_reported(models: list[str], folder: Path, text_file: str) -> None:
    verdict = check(
        models[1],
        models[0],
        text=text_file,
        tokens=1000,
        context=64,
        threads=1,
        engine="stub",
        tasks=TaskRequest([folder / "first.yaml"], 20),
    )
    assert verdict.bounds_are_defaults
    assert [b.metric for b in verdict.bounds] == ["kl_divergence", "perplexity_increase"]
    assert verdict.tasks[0].paired.n == 20


def test_task_files(folder: Path, tmp_path: Path) -> None:
    assert [file.name for file in task_files([folder])] == ["first.yaml", "second.yaml"]
    assert [file.name for file in task_files([folder / "second.yaml"])] == ["second.yaml"]
    with pytest.raises(UsageError, match=r"no task file or folder .*absent\.yaml"):
        TaskRequest([folder / "absent.yaml"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no task"):
        TaskRequest([tmp_path / "empty"])
    with pytest.raises(UsageError, match="limit of 0 items"):
        TaskRequest([folder], 0)


def test_a_missing_harness_is_one_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match=r"^lm-eval is not installed: pip install lm-eval$"):
        load([folder / "first.yaml"], allow_code=True)


def test_bounds_on_accuracy_need_tasks_and_a_range(folder: Path) -> None:
    with pytest.raises(UsageError, match="needs tasks"):
        check("a", "b", max_accuracy_drop=0.02)
    with pytest.raises(UsageError, match="between 0 and 1"):
        check("a", "b", max_accuracy_drop=2, tasks=TaskRequest([folder]))
