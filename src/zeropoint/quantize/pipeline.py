"""Quantize a checkpoint into an artifact folder, atomically."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.checkpoint import Checkpoint
from zeropoint.plan import Plan
from zeropoint.quantize.streaming import LayerError, Progress


@dataclass(frozen=True, slots=True)
class Summary:
    """What was written."""

    path: Path
    plan: Plan
    tensor_bytes: int
    source_tensor_bytes: int
    folder_bytes: int
    seconds: float
    layer_errors: Sequence[LayerError]


def quantize_checkpoint(
    source: Checkpoint | str | Path,
    out: str | Path,
    *,
    format: str = "int8",
    plan: Plan | None = None,
    algorithm: str = "rtn",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    min_coverage: float = 0.0,
    overwrite: bool = False,
    machine: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Summary:
    raise NotImplementedError
