"""The comparison as a GitHub table, for pull requests and README files."""

from __future__ import annotations

import re

from zeropoint.render.summary import footnotes, headline, warnings
from zeropoint.render.table import Cell, table
from zeropoint.values.report import Report

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~])")


def markdown(report: Report) -> str:
    """Return a headline, the table, and a list of warnings, engines and noise floor."""
    content = table(report)
    lines = [f"**{_escape(headline(report))}**", ""]
    lines.append("| Model | " + " | ".join(content.header) + " |")
    lines.append("| :-- |" + " --: |" * len(content.header))
    for head, cells in content.rows:
        lines.append("| " + " | ".join(_cell(cell) for cell in (head, *cells)) + " |")
    notes = [f"- **{_escape(line)}**" for line in warnings(report)]
    notes += [f"- {_escape(line)}" for line in footnotes(report)]
    if notes:
        lines += ["", *notes]
    if command := report.extra.get("command"):
        lines += ["", "```", str(command).replace("```", "'''"), "```"]
    return "\n".join(lines) + "\n"


def _cell(cell: Cell) -> str:
    return _escape(cell.main) + (f"<br><sub>{_escape(cell.note)}</sub>" if cell.note else "")


def _escape(text: str) -> str:
    """Return text with Markdown's special characters escaped, on one line."""
    return _SPECIAL.sub(r"\\\1", text).replace("\n", " ")
