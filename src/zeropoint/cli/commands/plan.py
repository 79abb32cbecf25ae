"""Look at plans: which weights two of them treat differently.

  zeropoint plan diff A.json B.json

A plan is the JSON that `quantize --save-plan` and `fit --save-plan` write: edit it, and `quantize --plan` carries it
out. An artifact's folder stands for the plan in its card.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.cli.common import add_json_option, check_writable, write_json
from zeropoint.cli.console import rich_console
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.values.plan import Plan

HELP = "compare two plans"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    diff = actions.add_parser(
        "diff", help="the weights that two plans treat differently; exit 1 when there are any"
    )
    diff.add_argument("first", metavar="A", type=Path, help="plan file, or artifact folder")
    diff.add_argument("second", metavar="B", type=Path)
    add_json_option(diff)


def run(args: argparse.Namespace) -> int:
    from rich.table import Table

    from zeropoint.values.plan import differences

    check_writable(args.json)
    first, second = _read(args.first), _read(args.second)
    found = differences(first, second)
    console = rich_console()
    table = Table("weight", str(args.first), str(args.second), box=None, pad_edge=False)
    for row in found:
        table.add_row(*row)
    if found:
        console.print(table)
    console.print(
        f"{len(found)} of {len(first.choices)} weights differ; {numbers.size(first.nbytes)} against "
        f"{numbers.size(second.nbytes)}",
        highlight=False,
    )
    rows = [{"name": name, "first": one, "second": other} for name, one, other in found]
    write_json(args.json, {"differences": rows, "nbytes": [first.nbytes, second.nbytes]})
    return 1 if found else 0


def _read(path: Path) -> Plan:
    from zeropoint import artifact
    from zeropoint.values.plan import Plan

    return artifact.open(path).plan if path.is_dir() else Plan.read(path)
