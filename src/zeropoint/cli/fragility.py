"""The sensitivity table in a terminal: the groups with the largest loss, heat maps, and inputs with outliers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from zeropoint.cli.console import rich_console

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from zeropoint.values.sensitivity import Sensitivity

#: Colours of a 256-colour terminal, from the smallest loss to the largest, readable on dark and light backgrounds.
_RAMP = (17, 24, 31, 38, 71, 142, 178, 208, 202, 196)
#: Rows of a table at most.
_ROWS = 12


def show(table: Sensitivity) -> None:
    """Print all tables on standard output."""
    from zeropoint.render.fragility import agreement, headline

    console = rich_console()
    console.print(f"[bold]{headline(table)}[/]", soft_wrap=True)
    for format in table.formats:
        console.print()
        console.print(_most_fragile(table, format))
        if words := agreement(table, format):
            console.print(words, soft_wrap=True, style="dim")
        console.print()
        console.print(_heat_map(table, format))
    console.print()
    console.print(_inputs(table))
    for name in table.unreached:
        console.print(f"warning: no token of the text reached {name}, so its loss is unknown", soft_wrap=True)


def _short(table: Sensitivity, name: str) -> str:
    """Return a group's short name, `block 3 q+k+v`: whole names would not fit into a narrow terminal."""
    group = next(group for group in table.groups if group.name == name)
    return name if group.block is None else f"block {group.block} {group.kind.replace('_proj', '')}"


def _grid(*titles: str) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for index, title in enumerate(titles):
        grid.add_column(title, justify="right" if index else "left", no_wrap=True)
    return grid


def _most_fragile(table: Sensitivity, format: str) -> Table:
    from zeropoint.render import numbers
    from zeropoint.render.layers import percent

    grid = _grid(f"fragile at {format}", "predicted KL", "± error", "measured KL", "output error")
    for cost in table.fragile(format)[:_ROWS]:
        measured = "" if cost.measured is None else numbers.nats(cost.measured.value)
        spread = numbers.nats(cost.fisher.standard_error)
        grid.add_row(
            _short(table, cost.group),
            numbers.nats(cost.fisher.value),
            spread,
            measured,
            percent(cost.output_error),
        )
    return grid


def _heat_map(table: Sensitivity, format: str) -> Table:
    """Return the heat map of one format: one row per transformer block, one column per kind of layer.

    Colours show the logarithm of the predicted loss; the digits 0 to 9 repeat the colours for terminals without.
    """
    groups = {group.name: group for group in table.groups}
    values = {
        (groups[cost.group].block, groups[cost.group].kind): cost.fisher.value
        for cost in table.fragile(format)
        if groups[cost.group].block is not None
    }
    kinds = list(dict.fromkeys(group.kind for group in table.groups if group.block is not None))
    logs = [math.log(max(value, 1e-12)) for value in values.values()]
    low, high = min(logs, default=0.0), max(logs, default=0.0)
    grid = _grid(format, *(kind.replace("_proj", "") for kind in kinds))
    for block in sorted({block for block, _ in values if block is not None}):
        grid.add_row(str(block), *(_cell(values.get((block, kind)), low, high) for kind in kinds))
    return grid


def _cell(value: float | None, low: float, high: float) -> Text:
    from rich.text import Text

    if value is None:
        return Text("")
    place = (math.log(max(value, 1e-12)) - low) / (high - low or 1)
    step = min(int(place * len(_RAMP)), len(_RAMP) - 1)
    return Text(f" {step} ", style=f"white on color({_RAMP[step]})")


def _inputs(table: Sensitivity) -> Table:
    """Return the table of inputs with the largest outlier channels."""
    grid = _grid("inputs with outliers", "max / median channel", "kurtosis", "channel")
    for shape in sorted(table.inputs, key=lambda shape: -shape.max_ratio)[:_ROWS]:
        grid.add_row(
            _short(table, shape.group),
            f"{shape.max_ratio:.1f}",
            f"{shape.token_kurtosis:.0f}",
            str(shape.worst_channel),
        )
    return grid
