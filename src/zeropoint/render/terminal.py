"""The comparison as a rich table: coloured in a terminal, plain and full-width in files and pipes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table as RichTable
from rich.text import Text

from zeropoint.render.summary import footnotes, warnings
from zeropoint.render.table import Cell, Table, table
from zeropoint.values.report import Report

# The width for files and pipes, which have none of their own: every column fits.
_PIPE_WIDTH = 160


def terminal(report: Report) -> RenderableType:
    """Return a rich renderable of a report: the table, warnings, the engines, the noise floor.

    Models are rows if the width allows it, else columns (three models fit in 80 characters).
    """
    return Group(
        _Comparison(table(report)),
        *(Text.assemble(("! ", "yellow bold"), line) for line in warnings(report)),
        *(Text(line, style="dim") for line in footnotes(report)),
    )


def plain_text(report: Report, *, width: int = _PIPE_WIDTH) -> str:
    """Return the output of `terminal` as text without colour or cursor codes, for files and pipes."""
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, force_terminal=False, legacy_windows=False)
    console.print(terminal(report), soft_wrap=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


class _Comparison:
    """The table; its layout depends on the width at the time of printing."""

    def __init__(self, content: Table) -> None:
        self._content = content

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = _models_as_rows(self._content)
        needed = Measurement.get(console, options.update(width=10_000), wide).maximum
        yield wide if needed <= options.max_width else _models_as_columns(self._content)


def _models_as_rows(content: Table) -> RichTable:
    grid = _grid("Model", content.header)
    for head, cells in content.rows:
        grid.add_row(_text(head, "bold"), *(_text(cell) for cell in cells))
    return grid


def _models_as_columns(content: Table) -> RichTable:
    grid = _grid("", [head.main for head, _ in content.rows])
    for index, title in enumerate(content.header):
        grid.add_row(Text(title, style="bold"), *(_text(cells[index]) for _, cells in content.rows))
    return grid


def _grid(first: str, titles: Sequence[str]) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    grid.add_column(first, no_wrap=True)
    for title in titles:
        # `Text`, because rich would interpret markup in a model's name.
        grid.add_column(Text(title), justify="right", no_wrap=True)
    return grid


def _text(cell: Cell, style: str = "") -> Text:
    text = Text(cell.main, style=style)
    if cell.note:
        text.append(f"\n{cell.note}", style="dim not bold")
    return text
