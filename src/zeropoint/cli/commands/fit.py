"""Find the formats of all layers that meet a budget on this machine, quantize with them, and run the quality gate.

  zeropoint fit MODEL -o OUT --max-memory 110MB                    best quality within that size
  zeropoint fit MODEL -o OUT --max-kl 0.02                         smallest and fastest that loses no more
  zeropoint fit MODEL -o OUT --max-memory 120MB --max-kl 0.05 --min-decode 150tok/s
  zeropoint fit MODEL --max-memory 110MB --plan-only --save-plan plan.json

The command first measures size, speed and loss of each layer in each format on this machine. The loss is the mean KL
divergence from the 16-bit model, in nats per token. Exit 0 if the artifact meets the budget, or if the 16-bit model
does already. Exit 1 if no plan meets the budget (no artifact is written, and the output says which budget could be
met), if the artifact fails the gate (its card has the verdict), or if --strict is given and a warning is printed.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.cli.commands.check import add_task_options, task_request
from zeropoint.cli.common import (
    add_calibration_options,
    add_json_option,
    add_revision_option,
    add_strict_option,
    add_threads_option,
    check_writable,
    progress_bar,
    refuse_ignored,
    strict_code,
    write_json,
)
from zeropoint.cli.console import rich_console, whole_table
from zeropoint.cli.option_values import (
    CHANGE,
    KL,
    MEMORY,
    RATE,
    SEED,
    Kind,
    algorithm_name,
    format_name,
    input_file,
    plain_file,
    whole,
)
from zeropoint.errors import UsageError
from zeropoint.machine.cores import default_threads
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.fitting import Fit
    from zeropoint.values.budget import Budget

HELP = "find and make the artifact that meets a budget of memory, loss and speed"
INTERRUPTED = (
    "interrupted: no half-written artifact was left behind; a whole one in OUT may not have passed the gate"
)

#: The three questions without a budget on the command line: the option that an answer sets, and the question.
QUESTIONS = (
    (
        "max_memory",
        "How much memory may the weights take? (80MB, 1.5GB; empty: as little as the other answers allow)",
    ),
    (
        "max_kl",
        "How much loss is acceptable, as mean KL in nats per token? (0.01 hardly any, 0.1 some; empty: any)",
    ),
    ("min_decode", "How many tokens per second must decoding reach? (100tok/s; empty: no minimum)"),
)

#: The parsers of the answers.
KINDS: dict[str, Kind[Any]] = {"max_memory": MEMORY, "max_kl": KL, "min_decode": RATE}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint fit`."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or hub name")
    parser.add_argument(
        "-o",
        "--out",
        metavar="OUT",
        help="the artifact folder to write; must not exist unless --overwrite is given",
    )
    budget = parser.add_argument_group("budget (give at least one, or answer three questions in a terminal)")
    budget.add_argument(
        "--max-memory", type=MEMORY, metavar="BYTES", help="bound on the size of all weights: 80MB, 1.5GB"
    )
    budget.add_argument(
        "--max-kl",
        type=KL,
        metavar="X",
        help="bound on the mean KL divergence from the 16-bit model, nats per token",
    )
    budget.add_argument(
        "--max-perplexity-increase",
        type=CHANGE,
        metavar="X",
        help="bound on the relative increase of perplexity: 1%% or 0.01",
    )
    budget.add_argument(
        "--min-decode",
        type=RATE,
        metavar="RATE",
        help="least speed of generating one sequence, in tokens per second: 100tok/s",
    )
    budget.add_argument(
        "--min-prefill",
        type=RATE,
        metavar="RATE",
        help="least speed of reading a prompt, in tokens per second: 1000tok/s",
    )
    parser.add_argument(
        "--objective",
        metavar="O",
        help="what to optimize within the budget: balanced (size and speed; default if the loss is bounded), size, "
        "speed, or quality (default if the loss is not bounded)",
    )
    parser.add_argument(
        "--formats",
        nargs="+",
        type=format_name,
        metavar="F",
        help="formats to choose from besides 16 bits, widest first (default: int8 int5 int4; with --min-prefill also "
        "formats with 8-bit inputs that read prompts faster on this machine)",
    )
    parser.add_argument(
        "--algorithm",
        type=algorithm_name,
        default="rtn",
        metavar="A[+A...]",
        help="how the weights are rounded, as in `zeropoint quantize` (default: rtn)",
    )
    add_calibration_options(
        parser, "text for algorithms that need calibration (default: a built-in sample)", of=plain_file
    )
    parser.add_argument(
        "--text",
        type=plain_file,
        metavar="FILE",
        help="UTF-8 text of at least three documents for planning, trials and the quality gate (default: prose "
        "shipped with Python)",
    )
    parser.add_argument(
        "--tokens",
        type=whole(1, 8192),
        default=8192,
        metavar="N",
        help="tokens of the text that the quality gate reads (default: 8192)",
    )
    parser.add_argument(
        "--planning-tokens",
        type=whole(1, 2048),
        default=2048,
        metavar="N",
        help="tokens of the text that each plan is measured on (default: 2048)",
    )
    parser.add_argument(
        "--evaluations",
        type=whole(0, 12),
        default=12,
        metavar="N",
        help="how many plans near the predicted optimum are measured too (default: 12)",
    )
    parser.add_argument(
        "--machine",
        type=input_file,
        metavar="FILE",
        help="plan for another machine, with estimated speeds: a file written there by `zeropoint doctor --json FILE`",
    )
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        help="folder in which measurements are stored and reused for other budgets (default: $ZEROPOINT_CACHE or "
        "~/.cache/zeropoint)",
    )
    parser.add_argument("--no-cache", action="store_true", help="neither read nor store measurements")
    parser.add_argument(
        "--anyway", action="store_true", help="quantize even if the 16-bit model meets the budget"
    )
    parser.add_argument(
        "--plan-only", action="store_true", help="find the plan, but do not quantize; -o is not needed"
    )
    parser.add_argument(
        "--save-plan", type=Path, metavar="FILE", help="write the plan as JSON, to edit and `quantize --plan`"
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write a page with the possible plans and the chosen one"
    )
    add_task_options(parser)
    add_revision_option(parser)
    add_strict_option(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an artifact")
    parser.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Find the plan, quantize and check. Return 1 if no plan meets the budget or the gate fails, else 0."""
    from zeropoint.fitting import Settings, default_folder, fit, read_machine

    check_writable(args.json, args.save_plan, args.html)
    if args.out is None and not args.plan_only:
        raise UsageError("name the artifact folder with -o OUT, or give --plan-only")
    if args.plan_only:
        refuse_ignored(args, "with --plan-only", out=None, overwrite=False)
    if args.no_cache:
        refuse_ignored(args, "with --no-cache", cache=None)
    budget = _budget(args)
    settings = Settings(
        formats=tuple(args.formats) if args.formats else None,
        algorithm=args.algorithm,
        objective=args.objective,
        calibration=args.calibration,
        calibration_tokens=args.calibration_tokens,
        text=args.text,
        tokens=args.planning_tokens,
        gate_tokens=args.tokens,
        evaluations=args.evaluations,
        threads=default_threads(args.threads),
        seed=args.seed,
        revision=args.revision,
        overwrite=args.overwrite,
        anyway=args.anyway,
        cache=None if args.no_cache else args.cache or default_folder(),
        tasks=task_request(args),
        machine=None if args.machine is None else read_machine(Path(args.machine)),
    )
    with progress_bar() as progress:
        result = fit(args.model, None if args.plan_only else args.out, budget, settings, progress)
    _show(result)
    if result.plan is not None and args.save_plan is not None:
        write_json(args.save_plan, result.plan.to_json())
    write_json(args.json, result.to_json())
    if args.html is not None:
        _write_page(args, result)
    if code := strict_code(args, result.warnings):
        return code
    return 0 if result.met or result.unneeded or (args.plan_only and result.plan is not None) else 1


def _write_page(args: argparse.Namespace, result: Fit) -> None:
    """Write the page of --html."""
    from zeropoint.machine.detect import Machine
    from zeropoint.render import write_page
    from zeropoint.values.report import Report

    section = {key: value for key, value in result.to_json().items() if key != "plan"}
    section["said"] = [] if result.verdict is None else [*result.verdict.sentences(), *result.missed()]
    extra = {
        "model": Path(args.model).name,
        "fit": section,
        "command": shlex.join(["zeropoint", *sys.argv[1:]]),
    }
    write_page(Report((), Machine.detect().to_json(), extra), args.html)


def _budget(args: argparse.Namespace) -> Budget:
    """Return the budget of the command line, or of the answers to `QUESTIONS`. Raises `UsageError` without either."""
    from zeropoint.values.budget import Budget

    names = ("max_memory", "max_kl", "max_perplexity_increase", "min_decode", "min_prefill")
    bounds = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    if not bounds:
        if not sys.stdin.isatty():
            raise UsageError(
                "give a budget: --max-memory, --max-kl, --max-perplexity-increase, --min-decode or --min-prefill"
            )
        answers = _ask()
        bounds = {name: _bound(name, answer) for name, answer in answers.items()}
        options = " ".join(f"{_option(name)} {answer}" for name, answer in answers.items())
        out = "--plan-only" if args.out is None else f"-o {args.out}"
        print(f"the same command without questions: zeropoint fit {args.model} {out} {options}\n")
    return Budget(**bounds, max_accuracy_drop=args.max_accuracy_drop)


def _bound(name: str, answer: str) -> Any:
    """Return the bound that an answer to one of `QUESTIONS` sets. Raises `UsageError` like the option's parser."""
    try:
        return KINDS[name](answer)
    except argparse.ArgumentTypeError as cause:
        raise UsageError(f"{_option(name)}: {cause}") from None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _ask() -> dict[str, str]:
    """Return the answers to `QUESTIONS`, without empty ones, by the name of the option that each sets."""
    answers = {name: input(f"{question}\n> ").strip() for name, question in QUESTIONS}
    return {name: answer for name, answer in answers.items() if answer}


def _show(result: Fit) -> None:
    """Print the plans that were compared, the notes, and the refusal or the verdict."""
    table = whole_table("plan", "weights", "decode", "prefill", "mean KL", "formats")
    for point in [*result.uniform, *([] if result.predicted is None else [result.predicted])]:
        chosen = point is result.predicted
        mix = (
            ", ".join(
                f"{count} groups of layers in {name}" for name, count in result.formats.items() if count
            )
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
    if result.uniform:
        console.print(table)
    for note in [*result.notes, *(f"warning: {text}" for text in result.warnings)]:
        console.print(note, soft_wrap=True, highlight=False)
    if result.refusal is not None:
        console.print(f"\n{result.refusal}", soft_wrap=True, highlight=False)
        return
    if result.wider:
        more = f" and {len(result.wider) - 8} more" if len(result.wider) > 8 else ""
        console.print(
            f"\nin wider formats, the most fragile first: {', '.join(result.wider[:8])}{more}", soft_wrap=True
        )
    if result.verdict is None:
        return
    console.print()
    for sentence in [*result.verdict.sentences(), *result.missed()]:
        console.print(sentence, soft_wrap=True, highlight=False)
    if result.decode is not None and result.prefill is not None:
        rates = f"decodes {numbers.rate(result.decode)}, reads a prompt at {numbers.rate(result.prefill)}"
        console.print(f"{rates}, in a fresh process", highlight=False)
