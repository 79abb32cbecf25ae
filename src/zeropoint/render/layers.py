"""Heat maps of layer errors: transformer block index by kind of layer, one map per artifact."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeropoint.render import numbers, svg

_IN_BLOCK = re.compile(r"\.(\d+)\.(.+)$")
_LABEL = 84.0
_FAINTEST = 0.07


@dataclass(frozen=True, slots=True)
class LayerError:
    """The error of one layer. `block` is None for layers outside the transformer blocks (embedding, head)."""

    name: str
    block: int | None
    kind: str
    scheme: str
    error: float
    sqnr_db: float | None

    def words(self, show: Callable[[float], str] | None = None) -> str:
        """Return the error in words; `show` writes the number (default: percent)."""
        sqnr = "" if self.sqnr_db is None else f", {self.sqnr_db:.1f} dB"
        return f"{self.name}: {(show or percent)(self.error)}{sqnr}, {self.scheme}"


def percent(error: float) -> str:
    """Return a relative error as percent."""
    return f"{numbers.plain(100 * error)} %"


def logarithmic(error: float) -> float:
    """Return the logarithm of an error, as a colour scale for errors of several orders of magnitude."""
    return math.log(max(error, 1e-12))


def parse(rows: Iterable[Mapping[str, Any]]) -> list[LayerError]:
    """Return the layer errors of a card's `layer_errors`; entries without a finite error are left out."""
    errors = []
    for row in rows:
        error = row.get("relative_error", row.get("relative"))
        if not isinstance(error, int | float) or not math.isfinite(error):
            continue
        name = str(row.get("name", "?")).removesuffix(".weight")
        match = _IN_BLOCK.search(name)
        sqnr = row.get("sqnr_db")
        errors.append(
            LayerError(
                name,
                int(match[1]) if match else None,
                match[2].split(".", 1)[-1] if match else name.split(".")[-1],
                str(row.get("scheme", "")),
                float(error),
                float(sqnr) if isinstance(sqnr, int | float) else None,
            )
        )
    return errors


def worst(errors: Sequence[LayerError]) -> LayerError | None:
    """Return the layer with the largest error; None for no layers."""
    return max(errors, key=lambda e: e.error, default=None)


def heat_map(
    errors: Sequence[LayerError],
    *,
    css: str,
    width: float = 1020,
    show: Callable[[float], str] = percent,
    scale: Callable[[float], float] = float,
    what: str = "Relative error",
) -> str:
    """Return the SVG of a heat map: rows are kinds of layer, columns are transformer blocks; "" for no blocks.

    Opacity grows linearly in `scale(error)` from the smallest to the largest error.
    """
    inside = [e for e in errors if e.block is not None]
    if not inside:
        return ""
    kinds = list(dict.fromkeys(e.kind for e in inside))
    blocks = max(e.block for e in inside if e.block is not None) + 1
    low, high = min(e.error for e in inside), max(e.error for e in inside)
    faint, full = scale(low), scale(high)
    label_width = max(_LABEL, 16 + max(svg.text_width(kind, 12) for kind in kinds))
    step = (width - label_width) / blocks
    height = min(max(step, 15), 24)
    worst_one = worst(inside)
    parts = []
    for row, kind in enumerate(kinds):
        parts.append(svg.text(label_width - 8, row * height + height / 2 + 4, kind, css="tick", anchor="end"))
    for each in inside:
        x, y = label_width + (each.block or 0) * step, kinds.index(each.kind) * height
        ink = _FAINTEST + (1 - _FAINTEST) * (scale(each.error) - faint) / (full - faint or 1)
        mark = " worst" if each is worst_one else ""
        parts.append(
            svg.rect(
                x + 0.75,
                y + 0.75,
                step - 1.5,
                height - 1.5,
                css=f"fill cell {css}{mark}",
                radius=min(2.5, step / 6),
                style=f"fill-opacity:{ink:.3f}",
                tip=each.words(show),
            )
        )
    bottom = len(kinds) * height
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100) if step * n >= 26 or n == 100)
    parts += [
        svg.text(label_width + (block + 0.5) * step, bottom + 16, str(block), css="tick", anchor="middle")
        for block in range(0, blocks, every)
    ]
    parts += _legend(bottom + 44, label_width, show(low), show(high), css)
    label = f"{what} by block and kind of layer, {show(low)} to {show(high)}"
    return svg.document(width, bottom + 50, parts, label=label, css="heat")


def _legend(y: float, left: float, low: str, high: str, css: str) -> list[str]:
    """Return the SVG of the colour scale with its smallest and largest error."""
    cells, cell = 8, 15.0
    parts = [svg.text(left - 8, y, "error", css="tick", anchor="end")]
    parts.append(svg.text(left, y, low, css="tick"))
    start = left + svg.text_width(low, 12) + 8
    for index in range(cells):
        ink = _FAINTEST + (1 - _FAINTEST) * index / (cells - 1)
        parts.append(
            svg.rect(
                start + index * cell, y - 10, cell, 11, css=f"fill {css}", style=f"fill-opacity:{ink:.3f}"
            )
        )
    parts.append(svg.text(start + cells * cell + 8, y, high, css="tick"))
    return parts
