"""Progress callbacks: parts of a whole, and callbacks of other shapes."""

from __future__ import annotations

import pytest

from zeropoint.progress import fractions, part, silent


def test_a_part_covers_its_share_of_the_whole() -> None:
    calls: list[tuple[str, float]] = []
    step = part(fractions(lambda what, done: calls.append((what, done))), 0.5, 0.25, "model")
    assert step is not None
    step("load", 0.0)
    step("quality", 3, 4)
    assert calls == [("model: load", 0.5), ("model: quality", pytest.approx(0.6875))]


def test_nobody_needs_to_listen() -> None:
    assert part(None, 0.0, 1.0) is None
    silent("step", 1, 2)
