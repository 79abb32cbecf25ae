"""The loss: KL divergence of the student's next-token distribution from the teacher's, over the whole vocabulary."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: The most logits whose probabilities are in memory at once.
PIECE = 1 << 22


def divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean over tokens of KL(teacher || student) in nats, from logits `[tokens, vocabulary]`.

    Memory stays at the two tensors of logits: the gradient is computed in pieces and overwrites `teacher`, which the
    caller must not use again.
    """
    result: Tensor = _Divergence.apply(student, teacher)  # type: ignore[no-untyped-call]
    return result


class _Divergence(torch.autograd.Function):
    """KL divergence. Its gradient by the student's logits is softmax(student) - softmax(teacher)."""

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        tokens, vocabulary = student.shape
        rows = max(1, PIECE // vocabulary)
        total = torch.zeros((), dtype=torch.float64, device=student.device)
        for start in range(0, tokens, rows):
            piece = slice(start, start + rows)
            exact = teacher[piece].float().log_softmax(-1)
            found = student[piece].float().log_softmax(-1)
            p = exact.exp()
            total += (p * (exact - found)).sum(dtype=torch.float64)
            teacher[piece] = (found.exp() - p) / tokens
        ctx.save_for_backward(teacher)
        return (total / tokens).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return gradient.mul_(grads[0]), None
