"""The quality card, `zeropoint.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def update_card(
    path: str | Path,
    *,
    quality: Mapping[str, Any] | None = None,
    verdict: Mapping[str, Any] | None = None,
    machine: Mapping[str, Any] | None = None,
) -> None:
    """Replace the given sections of an artifact's card, atomically."""
    raise NotImplementedError
