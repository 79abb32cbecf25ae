"""Inspect a model before quantizing: its layers, and its size and decode speed in each format.

No weights are loaded. With --sensitivity, the command instead runs the model on a text and measures what quantizing
each group of layers alone would lose in each format. A group of layers has a common input, such as query, key and
value; the loss is the mean KL divergence from the unquantized model, in nats per token.

  zeropoint inspect MODEL --sensitivity --formats int4 int8 a8token --json FILE --html FILE

If the JSON FILE exists and has the same model, formats and text, it is read and nothing is measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.cli.common import (
    DEFAULT_TEXT_TOKENS,
    add_json_option,
    add_revision_option,
    check_writable,
    progress_bar,
    refuse_ignored,
    this_machine,
    write_json,
    write_text,
)
from zeropoint.cli.console import rich_console, whole_table
from zeropoint.cli.option_values import format_name, input_file, whole
from zeropoint.render import numbers

if TYPE_CHECKING:
    from rich.table import Table

    from zeropoint.checkpoint import Checkpoint
    from zeropoint.predictions import Need

HELP = "show a model's layers, and its size and speed in each format"

#: Defaults of --formats, --tokens and --swaps.
FORMATS, TOKENS, SWAPS = ["int4", "int8", "a8token"], 2048, 16


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint inspect`."""
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or hub name")
    parser.add_argument(
        "--format",
        action="append",
        type=format_name,
        default=None,
        metavar="F",
        help="a format to show; repeatable (default: bf16 int8 int4)",
    )
    parser.add_argument("--no-measure", action="store_true", help="do not measure the memory bandwidth")
    add_revision_option(parser)
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="allow Python code of the checkpoint to run"
    )
    add_json_option(parser)
    group = parser.add_argument_group("sensitivity of the layers (all but the first need --sensitivity)")
    group.add_argument(
        "--sensitivity",
        action="store_true",
        help="run the model and measure the loss of each group of layers",
    )
    group.add_argument(
        "--formats",
        nargs="+",
        default=FORMATS,
        metavar="F",
        help="formats to measure; a8token quantizes only the inputs, to 8 bits (default: int4 int8 a8token)",
    )
    group.add_argument(
        "--text",
        type=input_file,
        metavar="FILE",
        help="text to run the model on (default: a built-in sample)",
    )
    group.add_argument(
        "--tokens",
        type=whole(1, TOKENS),
        default=TOKENS,
        metavar="N",
        help="tokens of the text (default: 2048)",
    )
    group.add_argument(
        "--swaps",
        type=whole(0, SWAPS),
        default=SWAPS,
        metavar="N",
        help="groups of layers per format whose predicted loss is checked by measuring it (default: 16)",
    )
    group.add_argument("--html", type=Path, metavar="FILE", help="also write the heat maps as one page")


def run(args: argparse.Namespace) -> int:
    """Print the layers, sizes and speeds, or with --sensitivity the losses, and return 0."""
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.planning.survey import survey

    if args.sensitivity:
        from zeropoint.quantization.sensitivity import check_formats

        refuse_ignored(args, "with --sensitivity", format=None, no_measure=False)
        check_formats(args.formats)
    else:
        refuse_ignored(
            args, "without --sensitivity", formats=FORMATS, text=None, tokens=TOKENS, swaps=SWAPS, html=None
        )
    check_writable(args.json, args.html)
    checkpoint = open_checkpoint(args.model, revision=args.revision, allow_remote_code=args.trust_remote_code)
    if args.sensitivity:
        return _sensitivity(checkpoint, args)
    machine = this_machine(measure=not args.no_measure)
    overview = survey(checkpoint, tuple(args.format or ("bf16", "int8", "int4")), machine=machine)
    console = rich_console()
    console.print(
        f"[bold]{overview.architecture}[/] ({overview.model_type}), {overview.layers} transformer blocks, "
        f"{overview.parameters / 1e6:.1f}M parameters, {numbers.size(overview.source_bytes)} as stored"
    )
    for kind, count in overview.parameters_by_kind.items():
        if count:
            console.print(f"  {kind:34s} {count / 1e6:9.2f}M  {count / overview.parameters:6.1%}")
    table = whole_table("format", "size", "of the original", "quantized", "decodes here at most")
    for surveyed in overview.formats:
        bound = "not measured" if surveyed.decode_bound is None else f"{surveyed.decode_bound:,.0f} tok/s"
        ratio = f"{surveyed.nbytes / overview.source_bytes:.3f}x"
        size = numbers.size(surveyed.nbytes)
        table.add_row(surveyed.format, size, ratio, f"{surveyed.quantized_fraction:.1%}", bound)
    console.print()
    console.print(table)
    if machine.memory_bandwidth_gbps:
        console.print(
            "\nDecoding cannot be faster than that, because each token reads every weight once, at the "
            f"{machine.memory_bandwidth_gbps:.0f} GB/s measured here.",
            soft_wrap=True,
        )
    needs = _needs(checkpoint, measure=not args.no_measure)
    console.print()
    console.print(_needs_table(needs))
    console.print(
        f"Memory is the predicted peak; {numbers.size(machine.ram_available_bytes)} are free here.",
        soft_wrap=True,
    )
    matrices = [row for row in overview.kept if len(row.shape) > 1]
    for row in matrices[:20]:
        console.print(f"not quantized: {row.name} {list(row.shape)}: {row.reason}", soft_wrap=True)
    if vectors := len(overview.kept) - len(matrices):
        console.print(
            f"not quantized: {vectors} vectors (norms, biases): too small to matter, too sensitive to round"
        )
    write_json(
        args.json,
        {
            "model": args.model,
            "machine": machine.to_json(),
            **asdict(overview),
            "needs": {n: asdict(need) for n, need in needs.items()},
        },
    )
    return 0


def _needs(checkpoint: Checkpoint, *, measure: bool) -> dict[str, Need]:
    """Return what each command needs, by its name; with `measure`, with the time where a pace is quickly measured."""
    from zeropoint import predictions
    from zeropoint.evaluate.quality.windows import DEFAULT_CONTEXT
    from zeropoint.fitting.result import FORMATS as FIT_FORMATS
    from zeropoint.planning import uniform_plan
    from zeropoint.quantization.auto import rounding_seconds
    from zeropoint.quantization.need import need_of

    source = checkpoint.source
    needs = {}
    for algorithm in ("rtn", "awq", "gptq", "best"):
        plan = uniform_plan(checkpoint, "int4", algorithm=algorithm)
        need = need_of(checkpoint, plan)
        if measure and algorithm == "rtn":
            need = replace(need, seconds=rounding_seconds(checkpoint, plan))
        needs[f"quantize --format int4 --algorithm {algorithm}"] = need
    nbytes = {name: uniform_plan(checkpoint, name).nbytes for name in ("bf16", *FIT_FORMATS)}
    artifact = [nbytes["int4"]]
    in_memory = predictions.reference_in_memory(source, DEFAULT_CONTEXT, artifact)
    streamed = predictions.reference_streamed(source, DEFAULT_TEXT_TOKENS, DEFAULT_CONTEXT, artifact)
    seconds = predictions.scoring_seconds(source, DEFAULT_TEXT_TOKENS, _pace()) if measure else None
    needs["check, compare --no-speed (of int4)"] = replace(in_memory, seconds=seconds)
    needs["the same with --stream"] = replace(streamed, seconds=seconds)
    needs["fit"] = predictions.fitting(predictions.Sizes.of(source), list(nbytes.values()))
    needs["generate, chat, serve (int4)"] = predictions.running(nbytes["int4"])
    return needs


def _pace() -> float:
    """Return the multiplications per second of float32 matrix products in torch."""
    import time

    import torch

    rows, weight = torch.ones(512, 1024), torch.ones(1024, 1024)
    torch.nn.functional.linear(rows, weight)
    started = time.perf_counter()
    for _ in range(4):
        torch.nn.functional.linear(rows, weight)
    return 4 * rows.numel() * len(weight) / (time.perf_counter() - started)


def _needs_table(needs: Mapping[str, Need]) -> Table:
    """Return what each command needs as a table."""
    table = whole_table("command", "memory", "disk", "time")
    for name, need in needs.items():
        time = "" if need.seconds is None else numbers.duration(need.seconds)
        table.add_row(name, numbers.size(need.memory), numbers.size(need.disk) if need.disk else "", time)
    return table


def _sensitivity(checkpoint: Checkpoint, args: argparse.Namespace) -> int:
    """Measure the sensitivity, or read it from the file of --json, print and write it, and return 0."""
    from zeropoint.cli import fragility
    from zeropoint.machine.detect import Machine
    from zeropoint.quantization import read_calibration
    from zeropoint.quantization.sensitivity import measure, sensitivity_key
    from zeropoint.render import page
    from zeropoint.values.report import Report
    from zeropoint.values.sensitivity import load

    tokens = read_calibration(checkpoint, args.text, tokens=args.tokens).tokens
    earlier = load(args.json) if args.json is not None and args.json.exists() else None
    if earlier is not None and earlier.key == sensitivity_key(
        checkpoint, tokens, args.formats, swaps=args.swaps, seed=0
    ):
        print(f"read from {args.json}: measured on the same model, formats and text")
        table = earlier
    else:
        with progress_bar() as bar:
            table = measure(checkpoint, tokens, args.formats, swaps=args.swaps, progress=bar)
    fragility.show(table)
    write_json(args.json, table.to_json())
    if args.html is not None:
        report = Report((), Machine.detect().to_json(), {"sensitivity": table.to_json()})
        write_text(args.html, page(report))
    return 0
