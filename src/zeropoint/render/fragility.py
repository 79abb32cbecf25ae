"""What each group of layers costs at each format: the section of the page, and the sentence above it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from zeropoint.render import layers, numbers
from zeropoint.values.report import Report
from zeropoint.values.sensitivity import Cost, Sensitivity

#: Colours of the maps, as those of models.
_COLOURS = ("c-orange", "c-blue", "c-purple", "c-green", "c-gold", "c-pink")
_SHOWN = 8


def table_of(report: Report) -> Sensitivity | None:
    """The table that a report carries. Raises `UsageError` when it is damaged."""
    data: Mapping[str, Any] | None = report.extra.get("sensitivity")
    return None if data is None else Sensitivity.from_json(data)


def headline(table: Sensitivity) -> str:
    """The one sentence: which group suffers most, alone, at the first format."""
    format = table.formats[0]
    worst = table.fragile(format)[0]
    return f"{worst.group} is the most fragile: alone at {format} it costs {loss(worst)}."


def loss(cost: Cost) -> str:
    """The best number known of a cost, in words."""
    best = cost.measured or cost.fisher
    return f"{numbers.nats(best.value)} nats a token"


def maps(table: Sensitivity | None) -> list[dict[str, Any]]:
    """A heat map, wide and narrow, and the most fragile groups, for every format."""
    if table is None:
        return []
    groups = {group.name: group for group in table.groups}
    found = []
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
        found.append(
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
    return found


def agreement(table: Sensitivity, format: str) -> str:
    """How far the scores agree at a format, in words."""
    found = [
        f"{pair.replace(' ~ ', ' and ')} {value:.2f}"
        for pair, _, text in (key.rpartition(", ") for key in table.agreement)
        if text == format
        for value in [table.agreement[f"{pair}, {text}"]]
    ]
    return f"Rank correlation of the scores: {'; '.join(found)}." if found else ""


def _row(cost: Cost) -> tuple[str, str, str, str]:
    measured = "" if cost.measured is None else numbers.nats(cost.measured.value)
    return cost.group, numbers.nats(cost.fisher.value), measured, layers.percent(cost.output_error)
