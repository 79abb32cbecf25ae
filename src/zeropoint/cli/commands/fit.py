"""Decide by measuring: the per-layer formats that meet a budget on this machine, then the artifact, then its gate.

  zeropoint fit MODEL -o OUT --max-memory 110MB                    the best quality in that size
  zeropoint fit MODEL -o OUT --max-kl 0.02                         the smallest and fastest that loses no more
  zeropoint fit MODEL -o OUT --max-memory 120MB --max-kl 0.05 --min-decode 150tok/s
  zeropoint fit MODEL --max-memory 110MB --plan-only --save-plan plan.json

Every layer's loss, size and speed is measured here first. Exit 0 when the artifact meets the budget (or 16 bits do
already), 1 when no plan does or the gate fails: what would be needed is said, and nothing is written.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.cli.commands.check import add_task_options, task_request
from zeropoint.cli.common import (
    add_json_option,
    add_threads_option,
    check_writable,
    default_threads,
    positive_int,
    progress_fraction,
    text_file,
    write_json,
)
from zeropoint.cli.console import rich_console
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.fitting import Fit
    from zeropoint.values.budget import Budget

HELP = "the formats that meet a budget of memory, loss and speed, found by measuring"

#: The three questions of the wizard: what is asked, and the default.
QUESTIONS = (
    (
        "max_memory",
        "How much memory may the weights take? (80MB, 1.5GB; empty: as little as the rest allows)",
    ),
    (
        "max_kl",
        "How much loss is acceptable, as mean KL in nats a token? (0.01 hardly any, 0.1 some; empty: any)",
    ),
    ("min_decode", "Is latency critical: how many tokens a second at least? (100tok/s; empty: no)"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or hub name")
    parser.add_argument("-o", "--out", metavar="OUT", help="the artifact folder to write; must not exist")
    budget = parser.add_argument_group("budget (any of them; without one, three questions are asked)")
    budget.add_argument("--max-memory", metavar="BYTES", help="of the weights: 80MB, 1.5GB")
    budget.add_argument(
        "--max-kl", metavar="X", help="mean KL divergence from the 16-bit model, nats a token"
    )
    budget.add_argument(
        "--max-perplexity-increase", metavar="X", help="1%% or 0.01: relative rise of perplexity"
    )
    budget.add_argument(
        "--min-decode", metavar="RATE", help="tokens a second generated for one sequence: 100tok/s"
    )
    budget.add_argument("--min-prefill", metavar="RATE", help="tokens a second read of one prompt: 1000tok/s")
    parser.add_argument(
        "--objective",
        metavar="O",
        help="what to make best within the budget: balanced (size and speed, the default where the loss is "
        "bounded), size, speed, or quality (the default where it is not)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        metavar="F",
        help="to choose from, beside 16 bits, widest first (default: the presets int8, int5 and int4)",
    )
    parser.add_argument("--algorithm", default="rtn", metavar="A", help="how codes are chosen (default: rtn)")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="text for algorithms that observe the model"
    )
    parser.add_argument("--calibration-tokens", type=positive_int, metavar="N", help="tokens of it to read")
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 text, three documents at least, for planning, trials and gate (default: prose shipped with Python)",
    )
    parser.add_argument(
        "--tokens",
        type=positive_int,
        default=8192,
        metavar="N",
        help="tokens that the gate reads (default: 8192)",
    )
    parser.add_argument(
        "--planning-tokens",
        type=positive_int,
        default=2048,
        metavar="N",
        help="tokens each plan is measured on",
    )
    parser.add_argument(
        "--evaluations",
        type=int,
        default=12,
        metavar="N",
        help="plans near the best that are also run (default: 12)",
    )
    parser.add_argument(
        "--machine",
        type=Path,
        metavar="FILE",
        help="plan for another machine: what `zeropoint doctor --json FILE` wrote there. Speeds are estimates then",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="where measured costs are kept for other budgets (default: $ZEROPOINT_CACHE or ~/.cache/zeropoint)",
    )
    parser.add_argument("--no-cache", action="store_true", help="measure again, and keep nothing")
    parser.add_argument("--anyway", action="store_true", help="quantize even if 16 bits meet the budget")
    parser.add_argument(
        "--plan-only", action="store_true", help="find the plan and stop: nothing is quantized"
    )
    parser.add_argument(
        "--save-plan", type=Path, metavar="FILE", help="the plan as JSON: edit it, `quantize --plan` it"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="a page with what could be had, and what was taken"
    )
    add_task_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an artifact already")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    from zeropoint.errors import UsageError
    from zeropoint.fitting import FORMATS, Settings, default_folder, fit, read_machine

    check_writable(args.json, args.save_plan, args.html)
    if args.out is None and not args.plan_only:
        raise UsageError("say where the artifact goes with -o OUT, or ask for --plan-only")
    budget = _budget(args)
    settings = Settings(
        formats=tuple(args.formats or FORMATS),
        algorithm=args.algorithm,
        objective=args.objective,
        calibration=text_file(args.calibration),
        calibration_tokens=args.calibration_tokens,
        text=text_file(args.text),
        tokens=args.planning_tokens,
        gate_tokens=args.tokens,
        evaluations=max(0, args.evaluations),
        threads=default_threads(args.threads),
        seed=args.seed,
        overwrite=args.overwrite,
        anyway=args.anyway,
        cache=None if args.no_cache else args.cache or default_folder(),
        tasks=task_request(args),
        machine=None if args.machine is None else read_machine(args.machine),
    )
    with progress_fraction() as progress:
        found = fit(args.model, None if args.plan_only else args.out, budget, settings, progress)
    _show(found)
    if found.plan is not None and args.save_plan is not None:
        write_json(args.save_plan, found.plan.to_json())
    write_json(args.json, found.to_json())
    if args.html is not None:
        _write_page(args, found)
    return 0 if found.met or found.unneeded or (args.plan_only and found.plan is not None) else 1


def _write_page(args: argparse.Namespace, found: Fit) -> None:
    from zeropoint.machine.detect import Machine
    from zeropoint.render import write_page
    from zeropoint.values.report import Report

    fitted = {key: value for key, value in found.to_json().items() if key != "plan"}
    fitted["said"] = [] if found.verdict is None else [*found.verdict.sentences(), *found.missed()]
    extra = {
        "model": Path(args.model).name,
        "fit": fitted,
        "command": shlex.join(["zeropoint", *sys.argv[1:]]),
    }
    write_page(Report((), Machine.detect().to_json(), extra), args.html)


def _budget(args: argparse.Namespace) -> Budget:
    from zeropoint.errors import UsageError
    from zeropoint.values.budget import Budget

    names = ("max_memory", "max_kl", "max_perplexity_increase", "min_decode", "min_prefill")
    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not given:
        if not sys.stdin.isatty():
            raise UsageError(
                "give a budget: --max-memory, --max-kl, --max-perplexity-increase, --min-decode or --min-prefill"
            )
        given = _ask()
        options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
        out = "--plan-only" if args.out is None else f"-o {args.out}"
        print(f"the same without questions: zeropoint fit {args.model} {out} {options}\n")
    return Budget.parse(**given, max_accuracy_drop=args.max_accuracy_drop)


def _ask() -> dict[str, str]:
    answers = {name: input(f"{question}\n> ").strip() for name, question in QUESTIONS}
    return {name: answer for name, answer in answers.items() if answer}


def _show(found: Fit) -> None:
    from rich.table import Table

    table = Table("plan", "weights", "decode", "prefill", "mean KL", "", box=None, pad_edge=False)
    for point in [*found.uniform, *([] if found.predicted is None else [found.predicted])]:
        chosen = point is found.predicted
        mix = (
            ", ".join(f"{count} groups {name}" for name, count in found.formats.items() if count)
            if chosen
            else ""
        )
        row = (
            point.name,
            numbers.size(point.nbytes),
            numbers.rate(point.decode),
            numbers.rate(point.prefill),
            numbers.nats(point.kl),
            mix,
        )
        table.add_row(*row, style="bold" if chosen else None)
    console = rich_console()
    if found.uniform:
        console.print(table)
    for note in found.notes:
        console.print(note, soft_wrap=True, highlight=False)
    if found.refusal is not None:
        console.print(f"\n{found.refusal}", soft_wrap=True, highlight=False)
        return
    if found.wider:
        more = f" and {len(found.wider) - 8} more" if len(found.wider) > 8 else ""
        console.print(
            f"\nkept wider, the most fragile first: {', '.join(found.wider[:8])}{more}", soft_wrap=True
        )
    if found.verdict is None:
        return
    console.print()
    for sentence in [*found.verdict.sentences(), *found.missed()]:
        console.print(sentence, soft_wrap=True, highlight=False)
    if found.decode is not None and found.prefill is not None:
        rates = f"decodes {numbers.rate(found.decode)}, reads a prompt at {numbers.rate(found.prefill)}"
        console.print(f"{rates}, in a fresh process", highlight=False)
