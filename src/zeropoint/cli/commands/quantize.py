"""Quantize a checkpoint into an artifact: a Hugging Face folder in the compressed-tensors format.

  zeropoint quantize MODEL -o OUT --format int8     8-bit weights, 16-bit activations
  zeropoint quantize MODEL -o OUT --format int4     4-bit weights in groups of 32, 8-bit embedding, 16-bit activations
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq --calibration FILE
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq+rounding --option gptq.damping=0.05
  zeropoint quantize MODEL -o OUT --format int4 --algorithm auto --time-budget 120
  zeropoint quantize MODEL -o OUT --format int4:g64:sym:bf16:a8g32 --keep '*.lm_head.*'
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq --resume     continue after an interruption

MODEL is a local Hugging Face folder, a .gguf file, or a hub name. The default algorithm, rtn, needs no data. gptq runs
the model on a calibration text and loses about half as much as rtn at 4 bits. "+" combines algorithms of different
kinds, in any order; they run as rotation, folds, layers, transformer blocks, then the whole model.
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

HELP = "quantize a model into an artifact in INT8, INT4, FP16 or a mix"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or hub name")
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="the artifact folder to write; must not exist unless --overwrite is given",
    )
    parser.add_argument(
        "--format",
        default="int8",
        metavar="F",
        help="fp16, bf16, int8 (default), int5, int4 or a scheme string such as int4:g64:asym:bf16:a8g32",
    )
    listed = "; ".join(
        f"{name}: {algorithms.summary(name).rstrip('.').replace('%', '%%')}" for name in algorithms.names()
    )
    parser.add_argument(
        "--algorithm",
        default="rtn",
        metavar="A[+A...]",
        help="the quantization algorithm (default: rtn). best: the combination with the least measured loss; good: the "
        "best combination in a fifth of that time; auto: the best combination within --time-budget. Or by name: "
        f"{listed}",
    )
    parser.add_argument(
        "--time-budget",
        type=_seconds,
        metavar="SECONDS",
        help="with --algorithm auto: bound on the estimated time of quantizing on this machine (default: 300)",
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
        help="calibration text or chat .jsonl (default: a built-in sample if the algorithm needs calibration)",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=positive_int,
        metavar="N",
        help="tokens of the calibration text to read (default: 65536)",
    )
    parser.add_argument(
        "--plan",
        type=Path,
        metavar="FILE",
        help="quantize by this plan (JSON) instead of --format and --algorithm",
    )
    parser.add_argument(
        "--save-plan", type=Path, metavar="FILE", help="write the plan as JSON, to edit and use with --plan"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="do not quantize weights whose names match, such as '*.lm_head.*'; repeatable",
    )
    parser.add_argument(
        "--embedding",
        metavar="F",
        help="format of the embedding and of an lm_head tied to it (default: 8 bits)",
    )
    parser.add_argument("--lm-head", metavar="F", help="format of the lm_head (default: 8 bits)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of all random choices (default: 0)"
    )
    parser.add_argument(
        "--min-coverage",
        type=_fraction,
        default=0.0,
        metavar="X",
        help="fail unless at least this share of the parameters is quantized, for example 0.95",
    )
    parser.add_argument(
        "--coverage", action="store_true", help="list every parameter with its format and the reason"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace OUT if it is an artifact, and discard an interrupted run",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue an interrupted run of the same command, with the same result; start anew if there is none",
    )
    parser.add_argument("--revision", metavar="REV", help="branch, tag or commit of a hub model")
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow Python code of the checkpoint to run"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 if a weight was not quantized as planned"
    )
    parser.add_argument(
        "--check", action="store_true", help="run the quality gate afterwards, like `zeropoint check`"
    )
    add_text_options(parser)
    add_threads_option(parser)
    add_json_option(parser)


def _fraction(text: str) -> float:
    """Parse an option's value from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _seconds(text: str) -> float:
    """Parse an option's value above 0."""
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
    calibration = None
    if tokens:
        calibration = read_calibration(checkpoint, args.calibration, tokens=tokens, seed=plan.seed)
    with progress_bar() as bar:
        summary = quantize_checkpoint(
            checkpoint,
            args.out,
            plan=plan,
            min_coverage=args.min_coverage,
            overwrite=args.overwrite,
            machine=Machine.detect().lasting(),
            calibration=calibration,
            resume=args.resume,
            progress=lambda p: bar(_shorten(p.name), p.done, p.total),
        )
    if args.resume:
        blocks = (
            f"{summary.resumed} finished blocks were found"
            if summary.resumed
            else "no finished block was found"
        )
        print(f"resumed: {blocks}")
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
    print(f"next: zeropoint compare {args.model} {args.out}   (measures what quantizing changed)")
    return 0


def _plan(checkpoint: Checkpoint, args: argparse.Namespace) -> tuple[Plan, int | None]:
    """Return the plan and the number of calibration tokens to read.

    0 tokens means no calibration; None means the default number if an algorithm needs calibration.
    """
    from zeropoint.planning import uniform_plan
    from zeropoint.quantization import auto
    from zeropoint.values.plan import Plan

    if args.time_budget is not None and (args.algorithm != auto.NAME or args.plan is not None):
        raise UsageError("--time-budget needs --algorithm auto and no --plan")
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
    """Return one line for each weight that was not quantized as planned, six lines at most."""
    return _shortened(
        [f"warning: {text}" for text in texts], "warning: {} more (the artifact's card lists them)"
    )


def _surprises(rows: list[CoverageRow]) -> list[str]:
    """Return one line for each unquantized matrix, six at most. Vectors are never quantized and get no line."""
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
