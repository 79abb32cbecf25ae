"""Quantize a checkpoint into an artifact: a Hugging Face folder in the compressed-tensors format.

  zeropoint quantize MODEL -o OUT --format int8     8-bit weights, 16-bit activations
  zeropoint quantize MODEL -o OUT --format int4     4-bit weights, 32 to a scale; 8-bit embedding; 16-bit activations
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq --calibration FILE
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq+rounding --option gptq.damping=0.05
  zeropoint quantize MODEL -o OUT --format int4 --algorithm auto --time-budget 120
  zeropoint quantize MODEL -o OUT --format int4:g64:sym:bf16:a8g32 --keep '*.down_proj.*'
  zeropoint quantize MODEL -o OUT --format int4 --algorithm gptq --resume     continue after an interruption
  zeropoint quantize MODEL -o OUT --format int4 --for vllm                    an artifact to export to vLLM

MODEL is a local Hugging Face folder, a .gguf file, or a hub name. The default algorithm, rtn, needs no data. gptq runs
the model on a calibration text and loses about half as much as rtn at 4 bits. "+" combines algorithms of different
kinds. Whatever the order of their names, they run in this order: rotation; awq or smoothquant; rtn, gptq or hqq;
rounding; distill.
"""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint import algorithms, exporters
from zeropoint.cli.common import (
    DEFAULT_TEXT_TOKENS,
    add_calibration_options,
    add_json_option,
    add_revision_option,
    add_strict_option,
    add_text_options,
    add_threads_option,
    check_writable,
    progress_bar,
    refuse_ignored,
    refuse_tiny_memory,
    strict_code,
    write_json,
)
from zeropoint.cli.console import rich_console, whole_table
from zeropoint.cli.option_values import (
    SECONDS,
    SEED,
    SHARE,
    algorithm_name,
    format_name,
    format_or_keep,
    input_file,
)
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.planning import CoverageRow
    from zeropoint.quantization.request import Request

HELP = "quantize a model into an artifact in INT8, INT4, FP16 or a mix"
INTERRUPTED = "interrupted: no half-written artifact was left behind"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint quantize`."""
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
        type=format_name,
        metavar="F",
        help="number format of the weights: fp16, bf16, int8 (default), int5, int4 or a scheme string such as "
        "int4:g64:asym:bf16:a8g32",
    )
    parser.add_argument(
        "--for",
        dest="target",
        choices=exporters.runtimes(),
        metavar="R",
        help="make an artifact that `zeropoint export` can write for this runtime: "
        f"{', '.join(exporters.runtimes())}; formats that you do not name are chosen for it, and formats that it does "
        "not support are refused before any work",
    )
    parser.add_argument(
        "--algorithm",
        type=algorithm_name,
        metavar="A[+A...]",
        help="how the weights are rounded (default: rtn): best, good, auto, or names from the list below, joined by +",
    )
    parser.add_argument(
        "--time-budget",
        type=SECONDS,
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
    add_calibration_options(
        parser,
        "calibration text or chat .jsonl (default: a built-in sample if the algorithm needs calibration)",
    )
    parser.add_argument(
        "--plan",
        type=input_file,
        metavar="FILE",
        help="quantize by this plan (JSON): it chooses every weight's format and algorithm, so --format, --algorithm, "
        "--keep and the like are refused beside it",
    )
    parser.add_argument(
        "--save-plan", type=Path, metavar="FILE", help="write the plan as JSON, to edit and use with --plan"
    )
    parser.add_argument(
        "--keep",
        action="append",
        default=[],
        metavar="PATTERN",
        help="do not quantize weights whose names match, such as '*.down_proj.*'; repeatable",
    )
    parser.add_argument(
        "--embedding",
        type=format_or_keep,
        metavar="F",
        help="format of the embedding, or keep to leave it unquantized (default: 8 bits)",
    )
    parser.add_argument(
        "--lm-head",
        type=format_or_keep,
        metavar="F",
        help="format of the output head, or keep to leave it unquantized (default: 8 bits); if the output head is tied "
        "to the embedding, they are one weight, and --lm-head wins over --embedding",
    )
    parser.add_argument("--seed", type=SEED, metavar="N", help="seed of all random choices (default: 0)")
    parser.add_argument(
        "--min-coverage",
        type=SHARE,
        default=0.0,
        metavar="X",
        help="fail unless at least this share of the parameters is quantized: 95%% or 0.95",
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
    add_revision_option(parser)
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow Python code of the checkpoint to run"
    )
    add_strict_option(parser)
    parser.add_argument(
        "--check", action="store_true", help="run the quality gate afterwards, like `zeropoint check`"
    )
    gate = parser.add_argument_group("with --check")
    add_text_options(gate)
    add_threads_option(gate)
    add_json_option(parser)
    parser.epilog = _list_of_algorithms()


def _list_of_algorithms() -> str:
    """Return the end of the help text: one line or two for each value of --algorithm."""
    described = {
        "best": "the combination with the least measured loss",
        "good": "the best combination in a fifth of the time of best",
        "auto": "the best combination within --time-budget",
        **{name: algorithms.summary(name).rstrip(".") for name in algorithms.names()},
    }
    lines = [
        textwrap.fill(text, 118, initial_indent=f"  {name:12}", subsequent_indent=" " * 14)
        for name, text in described.items()
    ]
    return "\n".join(["algorithms:", *lines])


def run(args: argparse.Namespace) -> int:
    """Quantize the model and print the result. Return 1 if --strict or --check fails, else 0."""
    refuse_tiny_memory(args.model)
    from zeropoint.calibrate.text import DEFAULT_TOKENS
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.machine.detect import Machine
    from zeropoint.planning import coverage, quantized_fraction
    from zeropoint.quantization import quantize_checkpoint, read_calibration, refuse_output

    check_writable(args.json, args.save_plan)
    if not args.check:
        refuse_ignored(args, "without --check", text=None, tokens=DEFAULT_TEXT_TOKENS)
    request = _request(args)
    refuse_output(args.out, resume=args.resume, overwrite=args.overwrite)
    _print_speed_note(request)
    checkpoint = open_checkpoint(args.model, revision=args.revision, allow_remote_code=args.trust_remote_code)
    plan, tokens, why = request.resolve(checkpoint)
    if why:
        print(f"auto: {why}")
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
            f"{summary.resumed} finished transformer blocks were found"
            if summary.resumed
            else "no finished transformer block was found"
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
        print(f"calibrated on {text['windows'] * text['length']} tokens of {text['source']}")
    for line in [*_warnings(summary.warnings), *_surprises(rows)]:
        print(line)
    result = _as_json(summary.tensor_bytes, summary.source_tensor_bytes, summary.seconds, rows)
    result |= {"calibration": summary.calibration, "warnings": list(summary.warnings)}
    write_json(args.json, result)
    if code := strict_code(args, summary.warnings):
        return code
    if args.check:
        from zeropoint.cli.commands.check import run_gate

        return run_gate(args.out, args.model, args)
    print("\n".join(_next_commands(args)))
    return 0


def _next_commands(args: argparse.Namespace) -> list[str]:
    """Return the lines that suggest the next commands."""
    compare = f"zeropoint compare {args.model} {args.out}   (measures what quantizing changed)"
    if args.target is None:
        return [f"next: {compare}"]
    target = exporters.quantize_target(args.target)
    return [
        f"next: zeropoint export {args.out} --to {target.export_name} --out ...   (writes and verifies it for "
        f"{target.name})",
        f"  or: {compare}",
    ]


def _request(args: argparse.Namespace) -> Request:
    """Return the arguments that choose formats and algorithms. Raises `UsageError` if they contradict each other."""
    from zeropoint.quantization.request import Request
    from zeropoint.values.plan import Plan

    if args.plan is not None:
        plan, options = (
            Plan.read(Path(args.plan)),
            dict.fromkeys(args.option),
        )  # refused beside a plan, whatever they say
    else:
        plan, options = None, algorithms.read_options(args.algorithm or "rtn", args.option)
    return Request(
        plan=plan,
        format=args.format,
        algorithm=args.algorithm,
        options=options,
        keep=args.keep,
        embedding=args.embedding,
        lm_head=args.lm_head,
        seed=args.seed,
        time_budget=args.time_budget,
        calibration_tokens=args.calibration_tokens,
        resume=args.resume,
        target=None if args.target is None else exporters.quantize_target(args.target),
        spelling=lambda name: "--option" if name == "options" else f"--{name.replace('_', '-')}",
    )


def _print_speed_note(request: Request) -> None:
    """Print a note if another preset is faster on this machine than the one asked for, as `doctor` measured it."""
    from zeropoint.files.user_folder import default_folder
    from zeropoint.kernels import active_isa
    from zeropoint.machine.cores import default_threads
    from zeropoint.quantization.request import DEFAULT_FORMAT
    from zeropoint.render.format_speeds import note_on
    from zeropoint.runtime.native import format_speeds

    if request.plan is not None or request.target is not None:
        return
    speeds = format_speeds.kept(default_folder(), threads=default_threads())
    if speeds is not None and (note := note_on(speeds, active_isa(), request.format or DEFAULT_FORMAT)):
        print(note)


def _shorten(name: str, width: int = 42) -> str:
    """Return a weight's name for the progress bar; of a long name the end, which differs from weight to weight."""
    return name if len(name) <= width else "…" + name[1 - width :]


def _print_coverage(rows: list[CoverageRow]) -> None:
    """Print the table of --coverage."""
    table = whole_table("parameter", "shape", "decision", "format", "bytes", "reason")
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
        f"not quantized: {row.name} ({row.reason})"
        for row in rows
        if row.decision == "kept" and len(row.shape) > 1
    ]
    return _shortened(lines, "not quantized: {} more matrices (--coverage lists them)")


def _shortened(lines: list[str], more: str, most: int = 6) -> list[str]:
    """Return at most `most` lines; the last one says how many `more` there are."""
    return lines if len(lines) <= most else [*lines[: most - 1], more.format(len(lines) - most + 1)]


def _as_json(nbytes: int, source: int, seconds: float, rows: list[CoverageRow]) -> dict[str, object]:
    """Return the result of --json, without calibration and warnings."""
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
