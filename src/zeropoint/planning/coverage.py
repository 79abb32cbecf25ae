"""What a plan does to every parameter of a model, and how much of it is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from zeropoint.checkpoint import Checkpoint
from zeropoint.plan import Plan


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """One line of the coverage report; `bytes` are those in the artifact (0 for a tied name)."""

    name: str
    shape: tuple[int, ...]
    decision: Literal["quantized", "kept", "tied"]
    scheme: str
    bytes: int
    reason: str


def coverage(checkpoint: Checkpoint, plan: Plan) -> list[CoverageRow]:
    raise NotImplementedError


def quantized_fraction(rows: list[CoverageRow]) -> float:
    """Parameters quantized / parameters (tied names counted once)."""
    raise NotImplementedError


def require_coverage(rows: list[CoverageRow], fraction: float) -> None:
    """Raise `UsageError` naming the largest kept weights when less than `fraction` is quantized."""
    raise NotImplementedError
