"""Tune what is not codes, over the whole quantized model, so that its predictions come nearest to the float model's.

Idea (Hinton et al. 2015, arXiv:1503.02531, for what a quantized model leaves free, as in Tailor et al. and in
PV-Tuning's continuous half, Malinovskii et al. 2024, arXiv:2405.14852): layer-wise algorithms make each layer good;
nothing tells them which of the errors that are left reach the logits. With all codes fixed, the scales, and the norm
weights and biases that are kept as floats, are trained by Adam on the divergence KL(float || quantized) of the next
token over the calibration text. The result has the same format and size to the byte.

Every number is trained as what its type will store: rounded on the way forward, as if it were not on the way back.
Nested scales have 4 significant bits a row and are left as they are; there the norms, the biases and the scales of
the embedding and the output head are what is trained. Zero points are integers, and stay.

The loss is measured before and after on the same windows, which training does not see, and the better of the two
models is taken; the caller is told when that is the one at the start.

Cost: each step runs the float model once, and the quantized one forwards and backwards, on `batch` windows. Memory:
both models in float32, the gradients of what is trained, and the logits of a batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

NEEDS: frozenset[str] = frozenset()

#: Of the windows, this part is not trained on but tells whether training helped.
HELD_OUT = 8

#: Steps until the rate is the full one.
WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Options:
    """`epochs`: how often each window is read, in `batch`es. `rate`: Adam's, of each number as a part of its size,
    falling to 0 as a cosine. `windows`: the most windows that are read, 0 for all."""

    epochs: float = 1.0
    batch: int = 4
    rate: float = 3e-4
    windows: int = 0


class Student(Protocol):
    """A quantized model that can be trained beside the float one."""

    free: Mapping[str, torch.Tensor]
    """What may be trained, by name, in float32."""

    def store(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What is left of a value of that name once it is stored."""
        ...

    def logits(self, values: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Those of tokens `[windows, length]` with these values of what is free; gradients flow to them."""
        ...

    def exact(self, tokens: torch.Tensor) -> torch.Tensor:
        """The float model's logits."""
        ...


@dataclass(frozen=True, slots=True)
class Tuned:
    """The stored values of what is free, and the mean KL on the windows held out; equal when nothing was gained."""

    values: dict[str, torch.Tensor]
    before: float
    after: float


def tune_model(student: Student, tokens: torch.Tensor, options: Options, seed: int) -> Tuned:
    """Train what is free in `student` on windows of tokens `[windows, length]`.

    Fewer than two windows cannot be trained on and held out: then nothing changes.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tokens), generator=generator)
    if options.windows:
        order = order[: options.windows]
    held = max(1, len(order) // HELD_OUT)
    seen, unseen = tokens[order[held:]], tokens[order[:held]]
    start = {name: value.detach().clone() for name, value in student.free.items()}
    before = _mean(student, start, unseen)
    if not len(seen) or not start:
        return Tuned(start, before, before)
    factors = {name: torch.ones_like(value) for name, value in start.items()}

    def stored() -> dict[str, torch.Tensor]:
        return {name: student.store(name, factor * start[name]) for name, factor in factors.items()}

    optimizer = torch.optim.Adam(factors.values(), lr=options.rate, betas=(0.9, 0.99))
    steps = max(1, round(options.epochs * len(seen) / options.batch))
    for step in range(steps):
        half = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
        for group in optimizer.param_groups:
            group["lr"] = options.rate * half * min(1.0, (step + 1) / WARM_UP)
        values = {name: value.requires_grad_() for name, value in stored().items()}
        for number in range(options.batch):
            # One window at a time: its logits are the largest thing in memory.
            window = seen[(step * options.batch + number) % len(seen)][None]
            loss = divergence(student.exact(window), student.logits(values, window)) / options.batch
            loss.backward()  # type: ignore[no-untyped-call]
        for name, value in values.items():  # rounding to the type is passed over, on the way back
            factors[name].grad = None if value.grad is None else value.grad * start[name]
        optimizer.step()
    found = stored()
    after = _mean(student, found, unseen)
    return Tuned(found, before, after) if after < before else Tuned(start, before, before)


def divergence(exact: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """The mean over tokens of KL(exact || found), from logits `[..., vocabulary]`."""
    reference = exact.log_softmax(-1)
    return (reference.exp() * (reference - found.log_softmax(-1))).sum(-1).mean()


def _mean(student: Student, values: Mapping[str, torch.Tensor], windows: torch.Tensor) -> float:
    with torch.no_grad():
        lost = [
            float(divergence(student.exact(window[None]), student.logits(values, window[None])))
            for window in windows
        ]
    return sum(lost) / len(lost)
