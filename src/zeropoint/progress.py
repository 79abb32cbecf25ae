"""Progress callbacks of long work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Progress(Protocol):
    """A callback that gets the name of the running step, and how much is done of the total.

    Without a total, `done` is the finished fraction of the whole, 0 to 1.
    """

    def __call__(self, what: str, done: float, total: float = 1.0, /) -> None: ...


def silent(what: str, done: float, total: float = 1.0) -> None:
    """Ignore progress."""


def fractions(callback: Callable[[str, float], None]) -> Progress:
    """Return a `Progress` that calls `callback` with the name of the step and the finished fraction."""
    return lambda what, done, total=1.0: callback(what, done / total)


def part(progress: Progress | None, start: float, share: float, name: str = "") -> Progress | None:
    """Return a callback for one step that covers the fractions `start` to `start + share` of the whole."""
    if progress is None:
        return None
    outer = progress
    return lambda what, done, total=1.0: outer(
        f"{name}: {what}" if name else what, start + share * done / total
    )
