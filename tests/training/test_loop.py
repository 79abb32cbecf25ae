"""The loss, the optimizer's groups, and the loop: learning, early stop, and resuming to the same bytes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UsageError
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.training import loop
from zeropoint.training.divergence import divergence
from zeropoint.training.loop import (
    Evaluation,
    Rates,
    Settings,
    Trainer,
    parameter_groups,
    schedule,
    window_of,
)
from zeropoint.training.recipe import prepare_qat

Checkpoints = Callable[[str], Path]
FAST = Rates(0.05, 1e-3)
WINDOWS = np.random.default_rng(0).integers(0, 256, (4, 16))


def trainer(source: Path, trainable: str = "full", rates: Rates = FAST) -> Trainer:
    teacher = FilledModel(open_checkpoint(source))
    teacher.fill(teacher.names(""))
    student = prepare_qat(source, "int3:g32:asym:bf16:a16token", trainable=trainable)  # type: ignore[arg-type]
    return Trainer(student, teacher.module, WINDOWS, WINDOWS, rates)  # one text: it must get better


def test_divergence_and_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropoint.training.divergence.PIECE", 30)
    teacher, student = torch.randn(2, 7, 11, generator=torch.Generator().manual_seed(0))
    student.requires_grad_()
    plain = student.detach().clone().requires_grad_()
    exact = teacher.log_softmax(-1)
    expected = (exact.exp() * (exact - plain.log_softmax(-1))).sum(-1).mean()
    expected.backward()
    loss = divergence(teacher.clone(), student)
    (3 * loss).backward()
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(student.grad, 3 * plain.grad)


@pytest.mark.parametrize("trainable", ["full", "lora", "scales"])
def test_training_lowers_the_divergence(trainable: str, tiny_checkpoint: Checkpoints) -> None:
    rates = Rates(0.05, 5e-3)
    run = trainer(tiny_checkpoint("llama_tied"), trainable, rates)
    seen: list[Evaluation] = []
    trained = run.train(Settings(12, 2, rates), watch=seen.append)
    assert trained.evaluations[0].step == trained.evaluations[0].changed == 0
    assert trained.best.held_out < trained.evaluations[0].held_out
    assert seen == trained.evaluations[1:]
    assert (trained.best.changed > 0) == (trainable != "scales")
    again = run.evaluate()  # the student has the best values
    assert again.held_out == pytest.approx(trained.best.held_out, rel=1e-5)


def test_ends_early_when_the_divergence_rises(tiny_checkpoint: Checkpoints) -> None:
    run = trainer(tiny_checkpoint("llama_tied"), rates=Rates(30.0, 1.0))
    trained = run.train(Settings(10, 1, Rates(30.0, 1.0)))
    assert trained.stopped_early
    assert trained.best.step == 0
    assert trained.evaluations[-1].step < 10
    assert run.evaluate().changed == 0


def test_an_interrupted_run_continues_to_the_same_values(
    tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    source, settings = tiny_checkpoint("llama_tied"), Settings(10, 2, Rates(0.05, 1e-3))
    whole = trainer(source)
    expected = whole.train(settings)

    def interrupt(evaluation: Evaluation) -> None:
        if evaluation.step == 4:
            raise KeyboardInterrupt

    state = tmp_path / "state.pt"
    with pytest.raises(KeyboardInterrupt):
        trainer(source).train(settings, state, interrupt)
    resumed = trainer(source)
    trained = resumed.train(settings, state)

    def without_time(evaluations: list[Evaluation]) -> list[tuple[float, ...]]:
        return [(e.step, e.held_out, e.changed) for e in evaluations]

    assert without_time(trained.evaluations) == without_time(expected.evaluations)
    for (name, one), (_, other) in zip(
        whole.student.named_parameters(), resumed.student.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name
    with pytest.raises(UsageError, match="other settings"):
        trainer(source).train(Settings(11, 2, Rates(0.05, 1e-3)), state)


def test_every_trained_value_has_one_group(tiny_checkpoint: Checkpoints) -> None:
    for trainable in ("full", "lora", "scales"):
        model = prepare_qat(tiny_checkpoint("gpt2"), "int4:g32:asym:bf16", trainable=trainable)  # type: ignore[arg-type]
        groups = list(parameter_groups(model, Rates()))
        ids = [id(value) for group in groups for value in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
        assert all(group["full_rate"] > 0 for group in groups)


def test_schedule_and_order() -> None:
    factors = [schedule(step, 100) for step in range(100)]
    assert max(factors) == pytest.approx(factors[4], rel=0.01)
    assert factors[0] < 0.3
    assert factors[-1] < 0.01
    order = [window_of(number, 5, seed=1) for number in range(10)]
    assert sorted(order[:5]) == sorted(order[5:]) == list(range(5))
    assert order != [window_of(number, 5, seed=2) for number in range(10)]
    assert loop.PATIENCE < loop.EVALUATIONS
