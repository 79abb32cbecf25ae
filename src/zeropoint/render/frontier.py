"""The page's section on a `fit`: loss against size and against speed, the budget's bounds, the chosen plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from zeropoint.render import numbers, svg
from zeropoint.render.charts import log_grid, log_height
from zeropoint.render.labels import Labels
from zeropoint.values.report import Report

_Point = Mapping[str, Any]
_WIDTH, _HEIGHT = 500.0, 360.0


@dataclass(frozen=True, slots=True)
class _Axis:
    """A horizontal axis: the `key` of a plan's prediction, and the name of the budget's `bound` on that key."""

    key: str
    title: str
    bound: str
    at_most: bool
    divide: float
    unit: str


_AXES = (
    _Axis("weights_bytes", "Loss and size", "max_memory", True, 1e6, "Weights, MB"),
    _Axis("decode_tokens_per_second", "Loss and speed", "min_decode", False, 1.0, "Decoding, tokens/s"),
)


def headline(answer: Mapping[str, Any]) -> str:
    """Return the headline of a `fit`: the chosen plan, or the refusal."""
    if answer.get("refusal"):
        words = str(answer["refusal"])
        return f"{words[:1].upper()}{words[1:]}."
    plan = answer["predicted"]
    mix = " and ".join(
        f"{count} groups of layers in {name}" for name, count in answer["formats"].items() if count
    )
    return f"{mix}: {numbers.size(plan['weights_bytes'])} for a mean KL of {numbers.nats(plan['kl'])}."


def section(report: Report) -> dict[str, Any] | None:
    """Return the section's panels and texts for the template; None if the report has no `fit`."""
    answer: Mapping[str, Any] | None = report.extra.get("fit")
    if answer is None:
        return None
    verdict = answer.get("verdict") or {}
    return {
        "headline": headline(answer),
        "panels": [
            {"title": axis.title, "svg": Markup(_panel(answer, axis))}
            for axis in _AXES
            if answer.get("front")
        ],
        "wider": list(answer.get("wider", ()))[:8],
        "more": max(len(answer.get("wider", ())) - 8, 0),
        "notes": [*answer.get("notes", ()), *answer.get("said", ())],
        "passed": verdict.get("passed"),
        "met": bool(answer.get("met")),
    }


@dataclass(frozen=True, slots=True)
class _Plane:
    """The plot area: maps axis values (linear from zero) and nats (logarithmic) to pixels."""

    axis: _Axis
    ticks: Sequence[float]
    exponents: Sequence[int]
    left: float = 52
    right: float = _WIDTH - 14
    top: float = 34
    bottom: float = _HEIGHT - 44

    def x(self, value: float) -> float:
        """Return the pixel column of a value on the axis."""
        return self.left + (self.right - self.left) * value / self.axis.divide / self.ticks[-1]

    def y(self, kl: float) -> float:
        """Return the pixel row of a divergence."""
        return log_height(kl, self.exponents, self.top, self.bottom)

    def at(self, point: _Point) -> tuple[float, float]:
        """Return the pixels of a plan's prediction."""
        return self.x(point[self.axis.key]), self.y(point["kl"])


def _panel(answer: Mapping[str, Any], axis: _Axis) -> str:
    """Return the SVG of loss against one axis."""
    uniform, front, tried = (answer.get(key) or [] for key in ("uniform", "front", "measured"))
    chosen = answer.get("predicted")
    points = [*uniform, *front, *tried, *([chosen] if chosen else [])]
    losses = [p["kl"] for p in points if p["kl"] > 1e-5]
    plane = _Plane(
        axis,
        svg.nice_ticks(1.08 * max(p[axis.key] for p in points) / axis.divide, 5),
        svg.decades(min(losses, default=1e-4), max(losses, default=1.0)),
    )
    parts = [*_allowed(plane, answer["budget"]), *_grid(plane)]
    line = sorted((plane.at(p) for p in front if p["kl"] > 1e-5), key=lambda place: place[0])
    parts += [svg.line(*a, *b, css="interval c-ref") for a, b in pairwise(line)]
    parts += [svg.circle(*plane.at(p), 2.5, css="fill c-ref", tip=_tip("a measured plan", p)) for p in tried]
    labels = Labels(plane.left, plane.right)
    marked = [(point, point["name"], 6, "c-blue") for point in uniform]
    if chosen:
        marked.append((chosen, "fit", 8, "c-orange"))
    for point, name, radius, css in marked:
        x, y = plane.at(point)
        labels.block(x - radius, y - radius, x + radius, y + radius)
        tip = _tip("the chosen plan" if point is chosen else name, point)
        parts.append(svg.circle(x, y, radius, css=f"fill dot {css}", tip=tip))
    for point, name, _, _ in reversed(marked):  # the chosen plan's label is placed first
        x, y = plane.at(point)
        parts += labels.place(x, y - 8, [(name, "name")], must=True)
    label = f"{axis.title}: " + "; ".join(_tip(p["name"] or "plan", p) for p in [*uniform, chosen] if p)
    return svg.document(_WIDTH, _HEIGHT, parts, label=label, css="scatter")


def _tip(name: str, point: _Point) -> str:
    return (
        f"{name}: {numbers.size(point['weights_bytes'])}, {numbers.rate(point['decode_tokens_per_second'])}, "
        f"mean KL {numbers.nats(point['kl'])} nats"
    )


def _allowed(plane: _Plane, budget: Mapping[str, Any]) -> list[str]:
    """Return the shaded area within the budget's bounds, and lines at the bounds."""
    bound, most = budget.get(plane.axis.bound), budget.get("max_kl")
    if bound is None and most is None:
        return []
    left, right = plane.left, plane.right
    if bound is not None:
        edge = min(max(plane.x(bound), plane.left), plane.right)
        left, right = (left, edge) if plane.axis.at_most else (edge, right)
    top = plane.top if most is None else plane.y(most)
    parts = [svg.rect(left, top, right - left, plane.bottom - top, css="floor")]
    if bound is not None:
        x = right if plane.axis.at_most else left
        parts.append(svg.line(x, plane.top, x, plane.bottom, css="floor-line"))
    if most is not None:
        parts.append(svg.line(plane.left, top, plane.right, top, css="floor-line"))
    return parts


def _grid(plane: _Plane) -> list[str]:
    """Return the SVG of grid lines, ticks and axis titles."""
    parts = log_grid(plane.exponents, plane.left, plane.right, plane.y)
    for tick in plane.ticks:
        x = plane.x(tick * plane.axis.divide)
        parts.append(svg.text(x, plane.bottom + 19, f"{tick:g}", css="tick", anchor="middle"))
    return [
        *parts,
        svg.line(plane.left, plane.bottom, plane.right, plane.bottom, css="axis"),
        svg.text(0, 14, "Mean KL, nats per token (log)", css="axis-title"),
        svg.text(plane.right, plane.bottom + 38, plane.axis.unit, css="axis-title", anchor="end"),
    ]
