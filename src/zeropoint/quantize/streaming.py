"""Quantize a checkpoint one weight at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from zeropoint.checkpoint import Checkpoint
from zeropoint.plan import Plan
from zeropoint.qtensor import Weight


@dataclass(frozen=True, slots=True)
class LayerError:
    """`relative` = ||W - W'|| / ||W||; `sqnr_db` = -20 log10 of it."""

    name: str
    scheme: str
    relative: float
    sqnr_db: float


@dataclass(frozen=True, slots=True)
class Progress:
    """Told after each weight: how many parameters (numbers) are done of `total`."""

    name: str
    done: int
    total: int
    error: LayerError | None


def stream(
    checkpoint: Checkpoint, plan: Plan, *, progress: Callable[[Progress], None] | None = None
) -> Iterator[tuple[str, Weight]]:
    """Each weight once, in model order: `(view or parameter name, Weight)`. Tied names are not repeated."""
    raise NotImplementedError
    yield
