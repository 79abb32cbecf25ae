"""Read and validate an artifact folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeropoint.plan import Plan
from zeropoint.qtensor import Weight


class Artifact:
    """An opened artifact; tensors are read lazily."""

    path: Path
    config: dict[str, Any]
    card: dict[str, Any]
    plan: Plan

    def names(self) -> list[str]:
        """Weight names, as in the stream that was written."""
        raise NotImplementedError

    def read(self, name: str) -> Weight:
        """One weight, validated."""
        raise NotImplementedError

    def stream(self) -> Iterator[tuple[str, Weight]]:
        """Every weight in the order of `names()`."""
        raise NotImplementedError

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        raise NotImplementedError


def open(path: str | Path) -> Artifact:
    """Open an artifact folder; `ArtifactError` says what is wrong with it."""
    raise NotImplementedError
