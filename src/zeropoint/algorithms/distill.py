"""Distillation: train the scales, norms and biases of the whole quantized model to match the float model's logits.

Idea (Hinton et al. 2015, arXiv:1503.02531; for the continuous parameters of a quantized model: Tailor et al., and
PV-Tuning, Malinovskii et al. 2024, arXiv:2405.14852): layer-wise algorithms minimize each layer's error and do not know
which errors reach the logits. Here the codes stay fixed. Adam trains the scales, and the norm weights and biases that
are kept as floats, on the KL divergence KL(float || quantized) of the next token over the calibration text. Format and
size of the model stay the same to the byte.

The forward pass uses each value rounded to its stored type; the backward pass ignores that rounding (straight-through).
Two-level scales are too coarse to train (base and multiple have about 4 bits each); in such a model the norms, the
biases and the scales of the embedding and the output head are trained. Zero points are integers and stay as they are.

The loss is measured before and after training on windows that are held out. The model with the lower loss is returned;
`Tuned.before == Tuned.after` says that training did not help.

Cost: each step runs, on `batch` windows, the float model forward and the quantized model forward and backward.
Memory: both models in float32, the gradients of the trained values, and the logits of one window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

NEEDS: frozenset[str] = frozenset()

#: One in so many windows is held out of training, to measure the loss before and after.
HELD_OUT = 8

#: Steps over which the learning rate rises linearly to its full value.
WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Options:
    """Training options.

    - `epochs`: how often each training window is read;
    - `batch`: windows per step;
    - `rate`: Adam's learning rate relative to each value's starting size; falls to 0 along a cosine;
    - `windows`: upper limit of the windows used, held-out ones included; 0 means all.
    """

    epochs: float = 1.0
    batch: int = 4
    rate: float = 3e-4
    windows: int = 0


class Student(Protocol):
    """A quantized model that can be trained beside the float one."""

    free: Mapping[str, torch.Tensor]
    """The trainable values by name, float32: scales of quantized weights, and kept vectors."""

    def store(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return `value` rounded to the type in which the artifact stores the trainable value `name`."""
        ...

    def logits(self, values: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Return the quantized model's logits `[windows, length, vocabulary]` for tokens `[windows, length]`.

        `values` replace the trainable values of the same names; gradients flow to `values`.
        """
        ...

    def exact(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the float model's logits `[windows, length, vocabulary]` for tokens `[windows, length]`."""
        ...


@dataclass(frozen=True, slots=True)
class Tuned:
    """The trained values as they will be stored, and the mean KL divergence on the held-out windows.

    `before` and `after` are equal if training did not lower the divergence; `values` are then the starting ones.
    """

    values: dict[str, torch.Tensor]
    before: float
    after: float


def tune_model(student: Student, tokens: torch.Tensor, options: Options, seed: int) -> Tuned:
    """Train the values `student.free` on windows of tokens `[windows, length]`; `seed` orders the windows.

    With fewer than two windows nothing is trained, because one window is always held out.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(tokens), generator=generator)
    if options.windows:
        order = order[: options.windows]
    held_count = max(1, len(order) // HELD_OUT)
    training_windows, held_out = tokens[order[held_count:]], tokens[order[:held_count]]
    start = {name: value.detach().clone() for name, value in student.free.items()}
    before = _mean(student, start, held_out)
    if not len(training_windows) or not start:
        return Tuned(start, before, before)
    factors = {name: torch.ones_like(value) for name, value in start.items()}

    def stored() -> dict[str, torch.Tensor]:
        """Return the trained values, rounded to the types in which the artifact stores them."""
        return {name: student.store(name, factor * start[name]) for name, factor in factors.items()}

    optimizer = torch.optim.Adam(factors.values(), lr=options.rate, betas=(0.9, 0.99))
    steps = max(1, round(options.epochs * len(training_windows) / options.batch))
    for step in range(steps):
        cosine = 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item())
        for group in optimizer.param_groups:
            group["lr"] = options.rate * cosine * min(1.0, (step + 1) / WARM_UP)
        values = {name: value.requires_grad_() for name, value in stored().items()}
        for number in range(options.batch):
            # One window at a time, because the logits take more memory than anything else.
            window = training_windows[(step * options.batch + number) % len(training_windows)][None]
            loss = divergence(student.exact(window), student.logits(values, window)) / options.batch
            loss.backward()  # type: ignore[no-untyped-call]
        for (
            name,
            value,
        ) in values.items():  # straight-through: the gradient ignores the rounding in `student.store`
            factors[name].grad = None if value.grad is None else value.grad * start[name]
        optimizer.step()
    trained = stored()
    after = _mean(student, trained, held_out)
    return Tuned(trained, before, after) if after < before else Tuned(start, before, before)


def divergence(exact: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the mean over tokens of KL(exact || found) in nats, from logits `[..., vocabulary]`."""
    reference = exact.log_softmax(-1)
    return (reference.exp() * (reference - found.log_softmax(-1))).sum(-1).mean()


def _mean(student: Student, values: Mapping[str, torch.Tensor], windows: torch.Tensor) -> float:
    """Return the mean KL divergence of the quantized model with `values` over the windows."""
    with torch.no_grad():
        divergences = [
            float(divergence(student.exact(window[None]), student.logits(values, window[None])))
            for window in windows
        ]
    return sum(divergences) / len(divergences)
