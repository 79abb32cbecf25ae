"""SVG elements of the charts. Text is always escaped; colours are CSS classes of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable
from html import escape

# Average glyph width of the page's sans-serif font, as a share of the font size; accurate enough for label placement.
_GLYPH_WIDTH = 0.56


def document(width: float, height: float, parts: Iterable[str], *, label: str, css: str = "") -> str:
    """Return an inline `<svg>` that scales with its container; `label` is the text for screen readers."""
    body = "".join(parts)
    return (
        f'<svg class="chart {css}" viewBox="0 0 {_n(width)} {_n(height)}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    css: str,
    tip: str = "",
    radius: float = 0,
    style: str = "",
) -> str:
    """Return a rectangle; `tip` is its tooltip."""
    extra = f' rx="{_n(radius)}"' if radius else ""
    extra += f' style="{escape(style)}"' if style else ""
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(max(width, 0))}" height="{_n(height)}" class="{css}"{extra}>'
        f"{_title(tip)}</rect>"
    )


def line(x1: float, y1: float, x2: float, y2: float, *, css: str) -> str:
    """Return a line."""
    return f'<line x1="{_n(x1)}" y1="{_n(y1)}" x2="{_n(x2)}" y2="{_n(y2)}" class="{css}"/>'


def circle(x: float, y: float, radius: float, *, css: str, tip: str = "") -> str:
    """Return a circle; `tip` is its tooltip."""
    return f'<circle cx="{_n(x)}" cy="{_n(y)}" r="{_n(radius)}" class="{css}">{_title(tip)}</circle>'


def text(x: float, y: float, content: str, *, css: str = "", anchor: str = "start") -> str:
    """Return a text element."""
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{css}" text-anchor="{anchor}">{escape(content)}</text>'


def text_width(content: str, size: float) -> float:
    """Return the approximate width in pixels of a text in font size `size`."""
    return len(content) * size * _GLYPH_WIDTH


def shorten(content: str, width: float, size: float) -> str:
    """Return the text, cut with an ellipsis to about `width` pixels."""
    room = max(int(width / (size * _GLYPH_WIDTH)), 2)
    return content if len(content) <= room else content[: room - 1] + "…"


def nice_ticks(top: float, count: int = 5) -> list[float]:
    """Return axis ticks from 0 to at least `top` in steps of 1, 2, 2.5 or 5 times a power of ten."""
    if top <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(top / count))
    step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power * count >= top * 0.999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def decades(low: float, high: float) -> list[int]:
    """Return the exponents of ten that enclose `[low, high]` (both above 0), with a little room below."""
    first, last = math.floor(math.log10(low) - 0.35), math.ceil(math.log10(high))
    return list(range(first, max(last, first + 1) + 1))


def _n(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _title(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""
