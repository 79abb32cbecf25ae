"""Quantize a checkpoint into an artifact: a Hugging Face folder in the compressed-tensors format.

  zeropoint quantize MODEL -o OUT --format int8     8-bit weights, 8-bit activations
  zeropoint quantize MODEL -o OUT --format int4     4-bit weights in groups of 32, embeddings at 8 bits
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq --calibration FILE
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq+rounding --option gptq.damping=0.05
  zeropoint quantize MODEL -o OUT --format int4 --algorithm auto --time-budget 120
  zeropoint quantize MODEL -o OUT --format int4:g64:sym:bf16:a8g32 --keep '*.lm_head.*'
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq --resume     after it was interrupted

MODEL is a local Hugging Face folder, a .gguf file, or a hub name. No data is needed by rtn, the default
algorithm; gptq observes the model on a text, which halves what 4 bits lose. Algorithms that do different work
are joined by "+" in any order; they are carried out as a rotation, folds, layers, blocks, then the model.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint import algorithms
from zeropoint.cli.common import (
    add_json_option,
    add_text_options,
    add_threads_option,
    check_writable,
    positive_int,
    progress_bar,
    write_json,
)
from zeropoint.cli.console import rich_console
from zeropoint.errors import UsageError
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.checkpoint import Checkpoint
    from zeropoint.planning import CoverageRow
    from zeropoint.values.plan import Plan

HELP = "make an artifact in INT8, INT4, FP16 or a mix"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or hub name")
    parser.add_argument(
        "-o", "--out", required=True, metavar="OUT", help="the folder to write; must not exist"
    )
    parser.add_argument(
        "--format",
        default="int8",
        metavar="F",
        help="fp16, bf16, int8 (default), int5, int4 or a scheme string",
    )
    listed = "; ".join(
        f"{name}: {algorithms.summary(name).rstrip('.').replace('%', '%%')}" for name in algorithms.names()
    )
    parser.add_argument(
        "--algorithm",
        default="rtn",
        metavar="A[+A...]",
        help="how codes are chosen (default: rtn); best: what lost least when measured; good: what did in a "
        f"fifth of its time; auto: the best of those that fit --time-budget; {listed}",
    )
    parser.add_argument(
        "--time-budget",
        type=_seconds,
        metavar="SECONDS",
        help="with --algorithm auto: how long quantizing may take, as estimated on this machine (default: 300)",
    )
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="[A.]NAME=VALUE",
        help="an option of an algorithm, such as gptq.damping=0.05; repeatable",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="FILE",
        help="text or chat .jsonl to observe the model on (default: a built-in sample where the algorithm needs one)",
    )
    parser.add_argument(
        "--calibration-tokens", type=positive_int, metavar="N", help="tokens of it to read (default: 65536)"
    )
    parser.add_argument(
        "--plan", type=Path, metavar="FILE", help="carry out this plan (JSON) instead of --format"
    )
    parser.add_argument(
        "--save-plan", type=Path, metavar="FILE", help="write the plan as JSON, to edit and replay"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave matching weights unquantized; repeatable",
    )
    parser.add_argument(
        "--embedding", metavar="F", help="another format for the embedding (and a tied lm_head)"
    )
    parser.add_argument("--lm-head", metavar="F", help="another format for an untied lm_head")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument(
        "--min-coverage",
        type=_fraction,
        default=0.0,
        metavar="X",
        help="fail unless this share of the parameters is quantized, 0.95 say",
    )
    parser.add_argument(
        "--coverage", action="store_true", help="list every parameter and what happened to it"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUT if it is an artifact, or an interrupted run of it",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with an interrupted run of this command, to the same bytes; where none was kept, begin",
    )
    parser.add_argument("--revision", metavar="REV", help="of a hub model")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run model code that the checkpoint ships"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if a weight was not made as the plan says"
    )
    parser.add_argument(
        "--check", action="store_true", help="then run the quality gate, as `zeropoint check` does"
    )
    add_text_options(parser)
    add_threads_option(parser)
    add_json_option(parser)


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def run(args: argparse.Namespace) -> int:
    from zeropoint.calibrate.text import DEFAULT_TOKENS
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.machine.detect import Machine
    from zeropoint.planning import coverage, quantized_fraction
    from zeropoint.quantization import quantize_checkpoint, read_calibration, refuse_output

    check_writable(args.json, args.save_plan)
    refuse_output(args.out, resume=args.resume, overwrite=args.overwrite)
    checkpoint = open_checkpoint(args.model, revision=args.revision, allow_remote_code=args.trust_remote_code)
    plan, tokens = _plan(checkpoint, args)
    if tokens is None and args.calibration is not None:
        tokens = DEFAULT_TOKENS
    observed = None
    if tokens:
        observed = read_calibration(checkpoint, args.calibration, tokens=tokens, seed=plan.seed)
    with progress_bar() as bar:
        summary = quantize_checkpoint(
            checkpoint,
            args.out,
            plan=plan,
            min_coverage=args.min_coverage,
            overwrite=args.overwrite,
            machine=Machine.detect().lasting(),
            calibration=observed,
            resume=args.resume,
            progress=lambda p: bar(_shorten(p.name), p.done, p.total),
        )
    if args.resume:
        found = (
            f"{summary.resumed} finished blocks were found"
            if summary.resumed
            else "no finished block was found"
        )
        print(f"resumed: {found}")
    if args.save_plan is not None:
        write_json(args.save_plan, plan.to_json())
    rows = coverage(checkpoint, plan)
    if args.coverage:
        _print_coverage(rows)
    ratio = summary.tensor_bytes / summary.source_tensor_bytes
    print(
        f"{args.out}: {numbers.size(summary.tensor_bytes)} from {numbers.size(summary.source_tensor_bytes)} "
        f"({ratio:.3f}x), {quantized_fraction(rows):.2%} of the parameters quantized, {summary.seconds:.1f} s"
    )
    if summary.calibration is not None:
        text = summary.calibration
        print(f"observed on {text['windows'] * text['length']} tokens of {text['source']}")
    for line in [*_warnings(summary.warnings), *_surprises(rows)]:
        print(line)
    result = _as_json(summary.tensor_bytes, summary.source_tensor_bytes, summary.seconds, rows)
    result |= {"calibration": summary.calibration, "warnings": list(summary.warnings)}
    write_json(args.json, result)
    if args.strict and summary.warnings:
        print(f"strict: {len(summary.warnings)} warnings, the first: {summary.warnings[0]}")
        return 1
    if args.check:
        from zeropoint.cli.commands.check import run_gate

        return run_gate(args.out, args.model, args)
    print(f"next: zeropoint compare {args.model} {args.out}   (zero impact is never assumed)")
    return 0


def _plan(checkpoint: Checkpoint, args: argparse.Namespace) -> tuple[Plan, int | None]:
    """What to do, and how many calibration tokens to read (0: none; None: the usual number, where any are needed)."""
    from zeropoint.planning import uniform_plan
    from zeropoint.quantization import auto
    from zeropoint.values.plan import Plan

    if args.time_budget is not None and (args.algorithm != auto.NAME or args.plan is not None):
        raise UsageError("--time-budget is for --algorithm auto")
    tokens = args.calibration_tokens
    if args.plan is not None:
        return Plan.read(args.plan), tokens
    options = algorithms.read_options(args.algorithm, args.option)
    algorithm = args.algorithm
    if algorithm == auto.NAME:
        auto.refuse_resume(args.resume)
        picked = auto.pick(checkpoint, args.format, args.time_budget or auto.DEFAULT_BUDGET, tokens=tokens)
        print(f"auto: {picked.reason}")
        algorithm, options, tokens = picked.algorithm, dict(picked.options), picked.tokens
    plan = uniform_plan(
        checkpoint,
        args.format,
        embedding=args.embedding,
        lm_head=args.lm_head,
        keep=tuple(args.keep),
        algorithm=algorithm,
        options=options,
        seed=args.seed,
    )
    return plan, tokens


def _shorten(name: str, width: int = 42) -> str:
    return name if len(name) <= width else "…" + name[1 - width :]


def _print_coverage(rows: list[CoverageRow]) -> None:
    from rich.table import Table

    table = Table("parameter", "shape", "what", "format", "bytes", "why", box=None, pad_edge=False)
    for row in rows:
        shape = "x".join(map(str, row.shape))
        table.add_row(row.name, shape, row.decision, row.scheme, f"{row.bytes:,}", row.reason)
    rich_console().print(table)


def _warnings(texts: Sequence[str]) -> list[str]:
    """What was not made as the plan says."""
    return _shortened(
        [f"warning: {text}" for text in texts], "warning: {} more (the artifact's card lists them)"
    )


def _surprises(rows: list[CoverageRow]) -> list[str]:
    """Kept matrices and their reasons: vectors are always kept and need no line."""
    lines = [
        f"kept: {row.name} ({row.reason})" for row in rows if row.decision == "kept" and len(row.shape) > 1
    ]
    return _shortened(lines, "kept: {} more matrices (--coverage lists them)")


def _shortened(lines: list[str], more: str, most: int = 6) -> list[str]:
    return lines if len(lines) <= most else [*lines[: most - 1], more.format(len(lines) - most + 1)]


def _as_json(nbytes: int, source: int, seconds: float, rows: list[CoverageRow]) -> dict[str, object]:
    return {
        "weights_bytes": nbytes,
        "source_bytes": source,
        "seconds": seconds,
        "coverage": [
            {
                "name": row.name,
                "shape": list(row.shape),
                "decision": row.decision,
                "scheme": row.scheme,
                "bytes": row.bytes,
                "reason": row.reason,
            }
            for row in rows
        ],
    }
