"""The page's section on sensitivity: the loss of each group of layers in each format, and its headline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from zeropoint.render import layers, numbers
from zeropoint.values.report import Report
from zeropoint.values.sensitivity import Cost, Sensitivity

#: CSS colour classes of the maps, by format.
_COLOURS = ("c-orange", "c-blue", "c-purple", "c-green", "c-gold", "c-pink")
_SHOWN = 8


def table_of(report: Report) -> Sensitivity | None:
    """Return the report's sensitivity table, or None. Raises `UsageError` if the table is damaged."""
    data: Mapping[str, Any] | None = report.extra.get("sensitivity")
    return None if data is None else Sensitivity.from_json(data)


def headline(table: Sensitivity) -> str:
    """Return the headline: the most fragile group at the first format."""
    format = table.formats[0]
    worst = table.fragile(format)[0]
    return f"{worst.group} is the most fragile: alone at {format} it costs {loss(worst)}."


def loss(cost: Cost) -> str:
    """Return a group's loss in words: measured if there is a measurement, else predicted."""
    best = cost.measured or cost.fisher
    return f"{numbers.nats(best.value)} nats a token"


def maps(table: Sensitivity | None) -> list[dict[str, Any]]:
    """Return for each format a wide and a narrow heat map, and the most fragile groups."""
    if table is None:
        return []
    groups = {group.name: group for group in table.groups}
    sections = []
    for index, format in enumerate(table.formats):
        ranked = table.fragile(format)
        cells = [
            layers.LayerError(
                c.group, groups[c.group].block, groups[c.group].kind, format, c.fisher.value, None
            )
            for c in ranked
        ]
        css = _COLOURS[index % len(_COLOURS)]
        wide, narrow = (
            layers.heat_map(
                cells,
                css=css,
                width=width,
                show=numbers.nats,
                scale=layers.logarithmic,
                what="Predicted divergence",
            )
            for width in (1020.0, 360.0)
        )
        sections.append(
            {
                "format": format,
                "css": css,
                "wide": Markup(wide),
                "narrow": Markup(narrow),
                "total": numbers.nats(sum(cost.fisher.value for cost in ranked)),
                "rows": [_row(cost) for cost in ranked[:_SHOWN]],
                "agreement": agreement(table, format),
            }
        )
    return sections


#: Name of a score in the table -> its column's title.
_SCORES = {"fisher": "predicted KL", "measured": "measured KL"}


def agreement(table: Sensitivity, format: str) -> str:
    """Return in words how well the sensitivity scores agree at a format."""
    pairs = [
        f"{_SCORES.get(one, one)} and {_SCORES.get(other, other)} {value:.2f}"
        for pair, _, text in (key.rpartition(", ") for key in table.agreement)
        if text == format
        for one, _, other in [pair.partition(" ~ ")]
        for value in [table.agreement[f"{pair}, {text}"]]
    ]
    return f"Rank correlation of the scores: {'; '.join(pairs)}." if pairs else ""


def _row(cost: Cost) -> tuple[str, str, str, str]:
    measured = "" if cost.measured is None else numbers.nats(cost.measured.value)
    return cost.group, numbers.nats(cost.fisher.value), measured, layers.percent(cost.output_error)
