"""lm-evaluation-harness itself, in measuring processes on the stub's bigram model; and what a task file may not do."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from zeropoint.errors import UsageError
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker.messages import AccuracyRequest, ModelToOpen

EXAMPLES = Path(__file__).parents[3] / "examples" / "data" / "tasks"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed (pip install -e '.[tasks]')"
)

TASK = """
task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


def ask(files: list[Path], command: tuple[str, ...], **changes: Any) -> Mapping[str, Any]:
    model = ModelToOpen("tiny", engine="stub")
    request = AccuracyRequest(model, threads=1, files=[str(file) for file in files], **changes)
    return client.call(request, threads=1, subject="tiny", command=command).tasks


def write(folder: Path, task: str) -> Path:
    rows = [
        {"question": f"{name} is", "choices": ["red", "green"], "answer": i % 2}
        for i, name in enumerate(("rose", "grass", "blood", "leaf"))
    ]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "colours.yaml"
    file.write_text(task)
    return file


def test_examples_are_answered_in_order(stub_worker: tuple[str, ...]) -> None:
    files = sorted(EXAMPLES.glob("*.yaml"))
    found = ask(files, stub_worker, limit=30)
    assert list(found) == ["adjective_order", "science_fact"]
    for name, each in found.items():
        assert each["metric"] == "acc"
        assert len(set(each["items"])) == len(each["correct"]) == 30
        assert set(each["correct"]) == {0, 1}, name
    again = ask(files[:1], stub_worker, limit=10)
    assert again["adjective_order"]["correct"] == found["adjective_order"]["correct"][:10]
    assert again["adjective_order"]["items"] == found["adjective_order"]["items"][:10]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"{{question}}"', "!function evil.text", r"runs Python code \(!function evil\.text\)"),
        (
            '"{{question}}"',
            '"{{question}}"\ninclude: other.yaml',
            r"more than data and templates \(include\)",
        ),
        ("dataset_path: json", "dataset_path: someone/dataset", "reads its data from 'someone/dataset'"),
        ("metric: acc,", "metric: ./evil,", "has a metric that is not plainly one of acc"),
        ("{test: colours.jsonl}}", "{test: colours.jsonl}, revision: x}", "names its data in another way"),
    ],
)
def test_what_could_run_code_is_refused(
    old: str, new: str, message: str, tmp_path: Path, stub_worker: tuple[str, ...]
) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('it ran')\n")
    assert old in TASK
    with pytest.raises(UsageError, match=f"{message}.*: add --allow-code if you trust it"):
        ask([write(tmp_path, TASK.replace(old, new))], stub_worker)


def test_templates_are_in_a_sandbox(tmp_path: Path, stub_worker: tuple[str, ...]) -> None:
    way_out = TASK.replace("{{question}}", "{{question.__class__.__mro__}}")
    with pytest.raises(UsageError, match=r"colours\.yaml.*SecurityError|'__class__' .* unsafe"):
        ask([write(tmp_path, way_out)], stub_worker)


def test_code_runs_when_allowed(tmp_path: Path, stub_worker: tuple[str, ...]) -> None:
    (tmp_path / "own.py").write_text("def text(doc):\n    return doc['question'].upper()\n")
    file = write(tmp_path, TASK.replace('"{{question}}"', "!function own.text"))
    data = tmp_path / "colours.jsonl"
    file.write_text(
        file.read_text().replace("colours.jsonl", str(data))
    )  # lm-eval's own paths are the caller's
    assert len(ask([file], stub_worker, allow_code=True)["colours"]["correct"]) == 4


def test_faults_of_a_task_are_one_sentence(tmp_path: Path, stub_worker: tuple[str, ...]) -> None:
    file = write(tmp_path, TASK)
    (tmp_path / "colours.jsonl").unlink()
    with pytest.raises(UsageError, match=r"has no data file .*colours\.jsonl"):
        ask([file], stub_worker)
    file.write_text("just words\n")
    with pytest.raises(UsageError, match="is not a task"):
        ask([file], stub_worker)
    second = tmp_path / "other"
    second.mkdir()
    with pytest.raises(UsageError, match="two tasks are called colours"):
        ask([write(tmp_path, TASK), write(second, TASK)], stub_worker)
