"""Accuracy on tasks: the reference model and a candidate answer the same items, each in a fresh process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.errors import UsageError, ZeropointError
from zeropoint.evaluate.compare import running_dtype, running_engine
from zeropoint.evaluate.model_description import Model
from zeropoint.evaluate.statistics.paired_accuracy import PairedAccuracy
from zeropoint.evaluate.tasks.task_files import task_files
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker.messages import AccuracyRequest, ModelToOpen
from zeropoint.progress import Progress, part


@dataclass(frozen=True, slots=True)
class TaskRequest:
    """The tasks to answer: YAML files or folders of YAML files, and `limit` items of each (None: all).

    `allow_code` lets task files run Python. Raises `UsageError` if a path is no task or the limit is below 1.
    """

    paths: Sequence[str | Path]
    limit: int | None = None
    allow_code: bool = False

    def __post_init__(self) -> None:
        task_files(self.paths)
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a limit of {self.limit} items leaves nothing to answer")


@dataclass(frozen=True, slots=True)
class TaskResult:
    """The result of one task: the `metric` of correctness, and the indices of the items `lost` and `gained`."""

    task: str
    metric: str
    paired: PairedAccuracy
    lost: tuple[int, ...]
    gained: tuple[int, ...]

    def sentence(self) -> str:
        """Return the result as a sentence."""
        p = self.paired
        return (
            f"{self.task} ({self.metric}, {p.n} items): {p.reference_accuracy:.1%} -> {p.accuracy:.1%}, "
            f"{p.losses} items lost and {p.gains} gained (McNemar p = {p.p_value:.2g}); "
            f"a drop of {p.detectable:.1%} would be found 80 % of the time"
        )


def measure_accuracy(
    reference: Model,
    candidate: Model,
    tasks: TaskRequest,
    *,
    engine: str,
    threads: int,
    progress: Progress | None = None,
) -> tuple[TaskResult, ...]:
    """Let both models answer the tasks, and return the paired results; the reference model runs in float32.

    Raises `UsageError` if a task cannot be loaded or scored.
    """
    answers = []
    for index, model in enumerate((reference, candidate)):
        dtype = "float32" if model.is_reference else running_dtype(model)
        request = AccuracyRequest(
            ModelToOpen(model.path, dtype, running_engine(model, engine)),
            threads,
            [str(file) for file in task_files(tasks.paths)],
            tasks.allow_code,
            tasks.limit,
        )
        step = part(progress, index / 2, 0.5, model.name)
        result = client.call(request, threads=threads, subject=model.name, progress=step)
        answers.append(result.tasks)
    return tuple(pair(name, *(entries[name] for entries in answers)) for name in answers[0])


def pair(task: str, reference: Mapping[str, Any], candidate: Mapping[str, Any]) -> TaskResult:
    """Return the paired result of one task, from each model's entry of `tasks.answer`.

    Raises `ZeropointError` if the models answered different items.
    """
    if reference["items"] != candidate["items"] or reference["metric"] != candidate["metric"]:
        raise ZeropointError(
            f"the two models were asked different items of {task}: its data changed between the two runs"
        )
    before, after = (np.asarray(entry["correct"], np.bool_) for entry in (reference, candidate))
    lost, gained = np.flatnonzero(before & ~after), np.flatnonzero(after & ~before)
    return TaskResult(
        task,
        reference["metric"],
        PairedAccuracy.of(before, after),
        tuple(map(int, lost)),
        tuple(map(int, gained)),
    )
