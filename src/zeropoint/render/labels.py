"""Words beside the dots of a chart, none over another."""

from __future__ import annotations

from collections.abc import Sequence

from zeropoint.render import svg


class Labels:
    """Places labels so that none covers another: the first free place wins, else it is left out
    unless it must be shown."""

    def __init__(self, left: float, right: float) -> None:
        """Labels stay between these two."""
        self._left, self._right = left, right
        self._taken: list[tuple[float, float, float, float]] = []

    def block(self, left: float, top: float, right: float, bottom: float) -> None:
        self._taken.append((left, top, right, bottom))

    def place(self, x: float, y: float, lines: Sequence[tuple[str, str]], *, must: bool) -> list[str]:
        """`lines` are (text, CSS class) beside `x, y`: right or left of it, or shifted when they must be shown."""
        width = max(svg.text_width(words, 13) for words, _ in lines)
        height = 15 * len(lines)
        shifts = (0, -26, 26) if must else (0,)
        places = [(x + side, y + up) for up in shifts for side in (14, -14 - width)]
        inside = [p for p in places if p[0] >= self._left and p[0] + width <= self._right]
        free = [p for p in inside if self._is_free(p[0], p[1] - 12, p[0] + width, p[1] - 12 + height)]
        if not free and not must:
            return []
        left, top = (free or inside or places)[0]
        self.block(left, top - 12, left + width, top - 12 + height)
        anchor, at = ("start", left) if left > x else ("end", left + width)
        return [svg.text(at, top + 15 * i, w, css=css, anchor=anchor) for i, (w, css) in enumerate(lines)]

    def _is_free(self, left: float, top: float, right: float, bottom: float) -> bool:
        return all(right <= a or left >= c or bottom <= b or top >= d for a, b, c, d in self._taken)
