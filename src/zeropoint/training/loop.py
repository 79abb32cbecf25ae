"""The training loop: AdamW with a cosine schedule on the divergence from the teacher, with early stopping.

Learning rates are relative. The rate of a weight is a share of its quantization step, and the rate of a scale or norm
is a share of its size. So the same rates suit every format and model. After each evaluation the state is written to the
disk, and a run that was killed goes on from there to the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from zeropoint.errors import UsageError
from zeropoint.files.atomic import replacing
from zeropoint.training.divergence import divergence
from zeropoint.training.recipe import prepared_of

Windows = NDArray[np.int64]

#: Share of the steps in which the learning rate rises to its full value.
WARM_UP = 0.05

#: Evaluations in a run. If `PATIENCE` of them in a row are no better than the best one, the run ends.
EVALUATIONS, PATIENCE = 10, 3


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates.

    - `weight`: of latent weights, as a multiple of their quantization scale, and of zero points, in codes;
    - `scale`: of scales, norms and biases, as a multiple of their mean size.
    """

    weight: float = 0.003
    scale: float = 3e-4


@dataclass(frozen=True, slots=True)
class Settings:
    """A run of `steps` optimizer steps of `batch` windows each; `seed` orders the windows."""

    steps: int
    batch: int = 8
    rates: Rates = Rates()
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The state of a run at one of its evaluations: what is shown while it runs, and kept for the card.

    `loss` is the mean training loss since the last evaluation, `held_out` the KL divergence on the held-out windows,
    `changed` the share of codes that differ from the first ones.
    """

    step: int
    loss: float
    held_out: float
    changed: float
    seconds_left: float = 0.0


@dataclass(slots=True)
class Trained:
    """The result of a run: its evaluations, the best one, and whether it ended early."""

    evaluations: list[Evaluation] = field(default_factory=list)
    stopped_early: bool = False

    @property
    def best(self) -> Evaluation:
        """Return the evaluation with the least divergence, whose weights the model has at the end."""
        return min(self.evaluations, key=lambda each: each.held_out)


class Trainer:
    """A student (from `prepare_qat`), its float teacher, and the windows of tokens that they read."""

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: torch.nn.Module,
        windows: Windows,
        held_out: Windows,
        rates: Rates = Rates(),
    ) -> None:
        self.student, self.teacher = student.eval(), teacher  # in eval mode there is no random dropout
        self.device = next(student.parameters()).device
        self._windows, self._held_out = torch.from_numpy(windows), torch.from_numpy(held_out)
        self._quantizers = dict(prepared_of(student).quantizers)
        self._first = {name: each.stored_codes().cpu().clone() for name, each in self._quantizers.items()}
        groups = list(parameter_groups(student, rates))
        self._optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), eps=1e-10, weight_decay=0.0)

    def train(
        self,
        settings: Settings,
        state: Path | None = None,
        watch: Callable[[Evaluation], None] = lambda evaluation: None,
    ) -> Trained:
        """Train, leave the best weights in the student, and return what happened.

        `state` is the file of the run's state; if it exists, the run continues from it. `watch` gets each evaluation.
        Raises `UsageError` if the file is of a run with other settings.
        """
        trained, step, best = self._restore(state, settings)
        every = max(1, settings.steps // EVALUATIONS)
        losses: list[float] = []
        started, first_step = time.monotonic(), step
        while step < settings.steps and not trained.stopped_early:
            losses.append(self._step(step, settings))
            step += 1
            if step % every and step < settings.steps:
                continue
            pace = (time.monotonic() - started) / (step - first_step)
            evaluation = self.evaluate(step, float(np.mean(losses)), pace * (settings.steps - step))
            losses.clear()
            trained.evaluations.append(evaluation)
            if trained.best is evaluation:
                best = self._values()
            elif evaluation.step >= trained.best.step + PATIENCE * every:
                trained.stopped_early = True
            self._save(state, settings, trained, step, best)
            watch(evaluation)
        with torch.no_grad():
            for name, value in best.items():
                self.student.get_parameter(name).copy_(value)
        return trained

    def evaluate(self, step: int = 0, loss: float = math.nan, seconds_left: float = 0.0) -> Evaluation:
        """Return the state of the student now."""
        with torch.no_grad():
            held_out = float(np.mean([float(self._loss(window[None])) for window in self._held_out]))
        differ = sum(
            int((each.stored_codes().cpu() != self._first[name]).sum())
            for name, each in self._quantizers.items()
        )
        count = sum(each.numel() for each in self._first.values())
        return Evaluation(step, loss, held_out, differ / count, seconds_left)

    def seconds_per_window(self) -> float:
        """Return the time of one training window: the second of two, so that the first one's start-up is left out."""
        for _ in range(2):
            started = time.monotonic()
            self._loss(self._windows[:1]).backward()  # type: ignore[no-untyped-call]
            seconds = time.monotonic() - started
        self._optimizer.zero_grad()
        return seconds

    def _step(self, step: int, settings: Settings) -> float:
        """Do one optimizer step and return its loss."""
        factor = schedule(step, settings.steps)
        for group in self._optimizer.param_groups:
            group["lr"] = factor * group["full_rate"]
        total = 0.0
        for number in range(settings.batch):
            index = window_of(step * settings.batch + number, len(self._windows), settings.seed)
            loss = self._loss(self._windows[index : index + 1]) / settings.batch
            loss.backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return total

    def _loss(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the divergence on one window of tokens `[1, length]`."""
        ids = tokens.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            with torch.no_grad():
                exact = self.teacher(input_ids=ids, use_cache=False).logits[0]
            found = self.student(input_ids=ids, use_cache=False).logits[0]
        return divergence(exact.float(), found.float())

    def _values(self) -> dict[str, torch.Tensor]:
        """Return copies of the trained values."""
        return {
            name: value.detach().cpu().clone()
            for name, value in self.student.named_parameters()
            if value.requires_grad
        }

    def _save(
        self,
        state: Path | None,
        settings: Settings,
        trained: Trained,
        step: int,
        best: dict[str, torch.Tensor],
    ) -> None:
        """Write the state of the run in one step."""
        if state is None:
            return
        data = {
            "settings": asdict(settings),
            "evaluations": [asdict(each) for each in trained.evaluations],
            "stopped_early": trained.stopped_early,
            "step": step,
            "values": self._values(),
            "best": best,
            "optimizer": self._optimizer.state_dict(),
        }
        with replacing(state, 0o644) as file:
            torch.save(data, file)

    def _restore(
        self, state: Path | None, settings: Settings
    ) -> tuple[Trained, int, dict[str, torch.Tensor]]:
        """Return the run so far, the number of steps done and the best values; from `state` if it exists."""
        if state is None or not state.exists():
            trained, values = Trained([self.evaluate()]), self._values()
            return trained, 0, values
        data: dict[str, Any] = torch.load(state, weights_only=True, map_location="cpu")
        if data["settings"] != asdict(settings):
            raise UsageError(
                "the interrupted run had other settings: give the same ones, or start again (--overwrite)"
            )
        with torch.no_grad():
            for name, value in data["values"].items():
                self.student.get_parameter(name).copy_(value)
        self._optimizer.load_state_dict(data["optimizer"])
        evaluations = [Evaluation(**each) for each in data["evaluations"]]
        return Trained(evaluations, data["stopped_early"]), data["step"], data["best"]


def parameter_groups(student: PreTrainedModel, rates: Rates) -> Iterator[dict[str, Any]]:
    """Yield a parameter group of the optimizer for each trained value, with its learning rate as `full_rate`."""
    found: set[int] = set()

    def group(value: torch.nn.Parameter | None, rate: float) -> Iterator[dict[str, Any]]:
        if value is not None and value.requires_grad:
            found.add(id(value))
            yield {"params": [value], "full_rate": rate}

    for quantizer in prepared_of(student).quantizers.values():
        step = float(quantizer.scale.detach().abs().mean())
        yield from group(quantizer.weight, rates.weight * step)
        yield from group(quantizer.scale, rates.scale * step)
        yield from group(quantizer.zero_point, rates.weight)
        if quantizer.lora_a is not None:  # its numbers have the size 1 / rank
            yield from group(quantizer.lora_a, rates.weight / len(quantizer.lora_a))
            yield from group(quantizer.lora_b, rates.weight * step)
    for value in student.parameters():
        if id(value) not in found:
            yield from group(value, rates.scale * max(float(value.detach().abs().mean()), 1e-3))


def schedule(step: int, steps: int) -> float:
    """Return the learning rate's factor: a linear rise, then a cosine down to 0."""
    rise = min(1.0, (step + 1) / max(1.0, WARM_UP * steps))
    return rise * 0.5 * (1 + math.cos(math.pi * step / steps))


def window_of(number: int, count: int, seed: int) -> int:
    """Return the index of the window that is read as number `number`; each pass over all windows has its own order."""
    epoch, place = divmod(number, count)
    return int(np.random.default_rng([seed, epoch]).permutation(count)[place])
