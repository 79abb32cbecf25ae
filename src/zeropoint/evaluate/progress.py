"""Progress callbacks for work in several steps."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Progress callback: gets the name of the running step and the finished fraction of the whole, 0 to 1."""


def part(progress: Progress | None, start: float, share: float, name: str = "") -> Progress | None:
    """Return a callback for one step that covers the fractions `start` to `start + share` of the whole."""
    if progress is None:
        return None
    outer = progress
    return lambda what, done: outer(f"{name}: {what}" if name else what, start + share * done)
