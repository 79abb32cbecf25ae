"""The page's charts as SVG: labelled bars, and a scatter plot of quality against size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zeropoint.render import numbers, svg
from zeropoint.render.labels import Labels

_ROW = 46
_BAR = 12


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar: `css` is the model's colour class, `note` is printed beside the value, `tip` is the tooltip."""

    name: str
    css: str
    value: float
    low: float
    high: float
    note: str = ""
    tip: str = ""


def bars(rows: Sequence[Bar], show: Callable[[float], str], *, label: str, width: float = 340) -> str:
    """Return the SVG of one horizontal bar per model, with the value as text and `[low, high]` as a whisker."""
    top = max((row.high for row in rows if math.isfinite(row.high)), default=0) or 1.0
    parts = []
    for index, row in enumerate(rows):
        y = index * _ROW
        length = width * min(row.value / top, 1) if math.isfinite(row.value) else width
        value = show(row.value)
        room = width - svg.text_width(f"{value}  {row.note}", 14)
        parts.append(svg.text(0, y + 14, svg.shorten(row.name, room, 13), css="name"))
        note_width = svg.text_width(f" {row.note}", 12) if row.note else 0
        parts.append(svg.text(width - note_width, y + 14, value, css="value", anchor="end"))
        if row.note:
            parts.append(svg.text(width, y + 14, row.note, css="note", anchor="end"))
        parts.append(svg.rect(0, y + 21, width, _BAR, css="track", radius=3))
        parts.append(svg.rect(0, y + 21, max(length, 2), _BAR, css=f"fill {row.css}", radius=3, tip=row.tip))
        if row.high > row.low and math.isfinite(row.high):
            parts += _whisker(width * row.low / top, width * row.high / top, y + 21 + _BAR / 2)
    return svg.document(width, len(rows) * _ROW - 8, parts, label=label, css="bars")


def _whisker(x1: float, x2: float, y: float) -> list[str]:
    return [
        svg.line(x1, y, x2, y, css="whisker"),
        svg.line(x1, y - 4, x1, y + 4, css="whisker"),
        svg.line(x2, y - 4, x2, y + 4, css="whisker"),
    ]


@dataclass(frozen=True, slots=True)
class Point:
    """A model in the scatter plot: size, mean KL in nats with its interval, and the 99th percentile of KL."""

    name: str
    css: str
    size_bytes: float
    kl: float
    low: float
    high: float
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plot area: maps bytes (linear) and nats (logarithmic) to pixels."""

    left: float
    right: float
    top: float
    bottom: float
    size_ticks: Sequence[float]
    exponents: Sequence[int]

    def x(self, size: float) -> float:
        """Return the pixel column of a size."""
        return self.left + (self.right - self.left) * size / self.size_ticks[-1]

    def y(self, kl: float) -> float:
        """Return the pixel row of a divergence."""
        return log_height(kl, self.exponents, self.top, self.bottom)


def scatter(points: Sequence[Point], floor: float | None, *, width: float = 660, height: float = 400) -> str:
    """Return the SVG of mean KL (logarithmic) against size on disk.

    The plot shows 95 % intervals, 99th percentiles and, unless None, the noise floor `floor`.
    """
    frame = _frame(points, floor, width, height)
    parts = _axes(frame)
    if floor is not None and floor > 0:
        parts += _floor(frame, floor)
    ordered = sorted(points, key=lambda p: p.size_bytes)
    marks = [part for point in ordered for part in _mark(frame, point)]
    labels = _labels(frame, ordered, floor)
    label = "Mean KL divergence against size on disk. " + "; ".join(
        f"{p.name}: {numbers.size(p.size_bytes)}, {numbers.nats(p.kl)} nats" for p in points
    )
    return svg.document(width, height, [*parts, *marks, *labels], label=label, css="scatter")


def _frame(points: Sequence[Point], floor: float | None, width: float, height: float) -> _Frame:
    values = [v for p in points for v in (p.kl, p.low, p.high, p.p99) if v and math.isfinite(v)]
    values += [floor] if floor else []
    exponents = svg.decades(min(values, default=1e-4), max(values, default=1.0))
    ticks = svg.nice_ticks(1.08 * max((p.size_bytes for p in points), default=1), 4 if width < 500 else 6)
    return _Frame(52, width - 14, 34, height - 44, ticks, exponents)


def log_height(value: float, exponents: Sequence[int], top: float, bottom: float) -> float:
    """Return the pixel row of a value on a logarithmic axis; values outside the axis land on its edge."""
    lowest, highest = exponents[0], exponents[-1]
    height = (math.log10(max(value, 10.0**lowest)) - lowest) / (highest - lowest)
    return bottom - (bottom - top) * min(max(height, 0), 1)


def log_grid(exponents: Sequence[int], left: float, right: float, y: Callable[[float], float]) -> list[str]:
    """Return a grid line at each power of ten, with the number to its left."""
    parts = []
    for exponent in exponents:
        at = y(10.0**exponent)
        parts.append(svg.line(left, at, right, at, css="grid"))
        parts.append(svg.text(left - 8, at + 4, numbers.plain(10.0**exponent, 1), css="tick", anchor="end"))
    return parts


def _axes(frame: _Frame) -> list[str]:
    """Return the SVG of both axes with ticks and titles."""
    parts = log_grid(frame.exponents, frame.left, frame.right, frame.y)
    unit, factor = ("GB", 1e9) if frame.size_ticks[-1] >= 2e9 else ("MB", 1e6)
    for tick in frame.size_ticks:
        x = frame.x(tick)
        words = f"{tick / factor:g}"
        parts.append(svg.line(x, frame.bottom, x, frame.bottom + 4, css="axis"))
        parts.append(svg.text(x, frame.bottom + 19, words, css="tick", anchor="middle"))
    parts.append(svg.line(frame.left, frame.bottom, frame.right, frame.bottom, css="axis"))
    parts.append(svg.text(0, 14, "Mean KL to the reference, nats per token (log)", css="axis-title"))
    parts.append(
        svg.text(frame.right, frame.bottom + 38, f"Size on disk, {unit}", css="axis-title", anchor="end")
    )
    return parts


def _floor(frame: _Frame, floor: float) -> list[str]:
    """Return the shaded area below the noise floor, with its label."""
    y = frame.y(floor)
    return [
        svg.rect(frame.left, y, frame.right - frame.left, frame.bottom - y, css="floor"),
        svg.line(frame.left, y, frame.right, y, css="floor-line"),
        svg.text(frame.left + 8, y - 7, f"noise floor {numbers.nats(floor)}", css="hint"),
    ]


def _labels(frame: _Frame, points: Sequence[Point], floor: float | None) -> list[str]:
    """Return labels with name and value beside the dots, and of 99th percentiles if there is room."""
    labels = Labels(frame.left, frame.right)
    if floor:
        y = frame.y(floor)
        labels.block(frame.left, y - 1, frame.right, y + 1)
        labels.block(frame.left, y - 20, frame.left + 130, y)
    for point in points:
        x, y = frame.x(point.size_bytes), frame.y(point.kl)
        labels.block(x - 9, y - 9, x + 9, y + 9)
    parts = []
    for point in points:
        lines = [(svg.shorten(point.name, 150, 13), "name"), (f"{numbers.nats(point.kl)} nats", "note")]
        parts += labels.place(frame.x(point.size_bytes), frame.y(point.kl) + 1, lines, must=True)
    for point in points:
        if _has_tail(point) and point.p99:
            words = [(f"p99 {numbers.nats(point.p99)}", "hint")]
            parts += labels.place(frame.x(point.size_bytes), frame.y(point.p99) + 4, words, must=False)
    return parts


def _has_tail(point: Point) -> bool:
    return point.p99 is not None and math.isfinite(point.p99) and point.p99 > point.kl


def _mark(frame: _Frame, point: Point) -> list[str]:
    """Return the SVG of a model: dot, interval and line to the 99th percentile."""
    x, y = frame.x(point.size_bytes), frame.y(point.kl)
    parts = []
    if _has_tail(point) and point.p99:
        top = frame.y(point.p99)
        parts.append(svg.line(x, top, x, y, css=f"tail {point.css}"))
        parts.append(svg.line(x - 7, top, x + 7, top, css=f"tail-end {point.css}"))
    if point.high > point.low:
        low, high = frame.y(point.low), frame.y(point.high)
        parts.append(svg.line(x, low, x, high, css=f"interval {point.css}"))
    tip = (
        f"{point.name}: {numbers.size(point.size_bytes)}, mean KL {numbers.nats(point.kl)} nats "
        f"({numbers.nats(point.low)} to {numbers.nats(point.high)})"
    )
    return [*parts, svg.circle(x, y, 7, css=f"fill dot {point.css}", tip=tip)]
