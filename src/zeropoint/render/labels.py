"""Placement of labels beside the dots of a chart, without overlap."""

from __future__ import annotations

from collections.abc import Sequence

from zeropoint.render import svg


class Labels:
    """The labels of one chart. A label takes the first free place; without one it is left out, unless `must` is set."""

    def __init__(self, left: float, right: float) -> None:
        """Start without labels; all labels stay between the pixels `left` and `right`."""
        self._left, self._right = left, right
        self._taken: list[tuple[float, float, float, float]] = []

    def block(self, left: float, top: float, right: float, bottom: float) -> None:
        """Reserve a rectangle that no later label may cover."""
        self._taken.append((left, top, right, bottom))

    def place(self, x: float, y: float, lines: Sequence[tuple[str, str]], *, must: bool) -> list[str]:
        """Return the SVG of a label beside the point `x, y`; [] if there is no free place.

        `lines` are (text, CSS class). With `must`, the label is always shown, shifted up or down if needed.
        """
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
