"""Progress of work in parts."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Called with what is being done and the finished fraction of the whole, 0 to 1."""


def part(progress: Progress | None, start: float, share: float, name: str = "") -> Progress | None:
    """`progress` of one step as progress of the whole, of which it is `share` from `start` on."""
    if progress is None:
        return None
    outer = progress
    return lambda what, done: outer(f"{name}: {what}" if name else what, start + share * done)
