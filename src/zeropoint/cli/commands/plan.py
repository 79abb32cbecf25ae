"""Compare two plans: list the weights for which they choose different formats or algorithms.

  zeropoint plan diff A.json B.json

A plan is the JSON file that `quantize --save-plan` and `fit --save-plan` write. You can edit it and run it with
`quantize --plan`. Instead of a plan file you can give an artifact folder; its card has the plan.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.cli.common import add_json_option, check_writable, write_json
from zeropoint.cli.console import rich_console, whole_table
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.values.plan import Plan

HELP = "compare two plans"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint plan`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    diff = actions.add_parser(
        "diff", help="list the weights that two plans treat differently; exit 1 if there are any"
    )
    diff.add_argument("first", metavar="A", type=Path, help="plan file or artifact folder")
    diff.add_argument("second", metavar="B", type=Path, help="plan file or artifact folder")
    add_json_option(diff)


def run(args: argparse.Namespace) -> int:
    """Print the differences of two plans. Return 1 if there are any, else 0."""
    from rich.text import Text

    from zeropoint.values.plan import differences

    check_writable(args.json)
    first, second = _read(args.first), _read(args.second)
    rows = differences(first, second)
    console = rich_console()
    table = whole_table("weight", str(args.first), str(args.second))
    for row in rows:
        table.add_row(*map(Text, row))
    if rows:
        console.print(table)
    console.print(
        f"{len(rows)} of {len(first.choices)} weights differ; {numbers.size(first.nbytes)} against "
        f"{numbers.size(second.nbytes)}",
        highlight=False,
    )
    result = [{"name": name, "first": one, "second": other} for name, one, other in rows]
    write_json(args.json, {"differences": result, "nbytes": [first.nbytes, second.nbytes]})
    return 1 if rows else 0


def _read(path: Path) -> Plan:
    """Return the plan of a plan file, or of an artifact's card."""
    from zeropoint import artifact
    from zeropoint.values.plan import Plan

    return artifact.open(path).plan if path.is_dir() else Plan.read(path)
