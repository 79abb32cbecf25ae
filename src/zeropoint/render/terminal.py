"""The comparison as a rich table: colour where there is a terminal, plain and whole where there is none."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from zeropoint.render.summary import noise_lines, warnings
from zeropoint.render.table import Cell, table
from zeropoint.report import Report

# Wide enough for every column; a pipe has no width, and cutting numbers off would be worse.
_PIPE_WIDTH = 160


def terminal(report: Report) -> RenderableType:
    """What `rich.console.Console.print` shows: the table, warnings, the noise floor."""
    content = table(report)
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    grid.add_column("Model", no_wrap=True)
    for title in content.header:
        grid.add_column(title, justify="right", no_wrap=True)
    for head, cells in content.rows:
        grid.add_row(_text(head, "bold"), *(_text(cell) for cell in cells))
    lines: list[RenderableType] = [grid]
    lines += [Text.assemble(("! ", "yellow bold"), line) for line in warnings(report)]
    lines += [Text(line, style="dim") for line in noise_lines(report)]
    return Group(*lines)


def plain_text(report: Report, *, width: int = _PIPE_WIDTH) -> str:
    """The same without colour or cursor codes, for files and pipes."""
    out = io.StringIO()
    console = Console(file=out, width=width, no_color=True, force_terminal=False, legacy_windows=False)
    console.print(terminal(report), soft_wrap=False)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def _text(cell: Cell, style: str = "") -> Text:
    text = Text(cell.main, style=style)
    if cell.note:
        text.append(f"\n{cell.note}", style="dim not bold")
    return text
