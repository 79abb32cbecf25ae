"""Show what Zeropoint finds on this machine: cores, instruction sets, memory, the kernel that each format uses (and why
a faster kernel is not used), how fast the kernels are in each format, and the model sizes and speeds to expect.

The speeds are measured once (a few seconds) and kept in the user's cache, for each processor, build of the kernels and
number of threads.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zeropoint.cli.common import (
    add_json_option,
    add_threads_option,
    check_writable,
    progress_bar,
    refuse_ignored,
    this_machine,
    write_json,
)
from zeropoint.cli.console import rich_console, whole_table
from zeropoint.machine.cores import default_threads
from zeropoint.render import numbers

if TYPE_CHECKING:
    from rich.console import Console

    from zeropoint.machine.detect import Machine
    from zeropoint.runtime.native.format_speeds import FormatSpeeds

HELP = "show this machine, the kernels it uses, and the speed to expect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint doctor`."""
    add_json_option(parser)
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="measure nothing; show the speeds of the kernels only if an earlier run kept them",
    )
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="measure the speeds of the kernels again and replace the kept ones",
    )
    add_threads_option(parser)


#: One scheme for each kernel path: presets, 8-bit activations per token, asymmetric groups, float activations.
SHOWN = (
    "int8",
    "int5",
    "int4",
    "int8:channel:sym:bf16:a8token",
    "int4:g128:asym:bf16:a8g64",
    "int8:channel:asym:bf16",
)


def run(args: argparse.Namespace) -> int:
    """Print and write what was found, and return 0."""
    from rich.table import Table

    from zeropoint.kernels import active_isa
    from zeropoint.render.format_speeds import advice as speed_advice

    check_writable(args.json)
    if args.no_measure:
        refuse_ignored(args, "with --no-measure", fresh=False)
    machine = this_machine(measure=not args.no_measure)
    speeds = _speeds(args)
    console = rich_console()
    facts = Table(show_header=False, box=None, pad_edge=False)
    for label, value in _facts(machine):
        facts.add_row(f"[bold]{label}", value)
    console.print(facts)
    formats = whole_table("format", "kernel", "note")
    rows = _kernels()
    for row in rows:
        formats.add_row(row["format"], row["kernel"], row["note"])
    console.print()
    console.print(formats)
    advice = _advice(machine)
    if speeds is not None and speeds.levels:
        _show_speeds(console, speeds)
        if speeds.is_quiet and (level := active_isa()) in speeds.levels:
            advice.insert(0, speed_advice(speeds, level))
    console.print()
    for line in advice:
        console.print(line, soft_wrap=True, highlight=False)
    found = None if speeds is None else speeds.to_json()
    write_json(
        args.json,
        {"machine": machine.to_json(), "kernels": rows, "format_speeds": found, "advice": advice},
    )
    return 0


def _speeds(args: argparse.Namespace) -> FormatSpeeds | None:
    """Return the speeds of the kernels, kept or measured now.

    Return None without the native library, or if no speeds are kept and `--no-measure` is given.
    """
    from zeropoint.files.user_folder import default_folder
    from zeropoint.kernels import library
    from zeropoint.runtime.native import format_speeds

    folder, threads = default_folder(), default_threads(args.threads)
    if args.no_measure or library.missing() is not None:
        return format_speeds.kept(folder, threads=threads)
    with progress_bar() as bar:
        return format_speeds.measured(folder, threads=threads, fresh=args.fresh, step=bar)


def _show_speeds(console: Console, speeds: FormatSpeeds) -> None:
    """Print a table for each instruction set level, and how the speeds were measured."""
    from zeropoint.render.format_speeds import cells
    from zeropoint.runtime.native.format_speeds import ROWS

    titles = [
        work if str(rows) in work else f"{work} ({rows} row{'s' * (rows != 1)})"
        for work, rows in ROWS.items()
    ]
    for level, formats in speeds.levels.items():
        table = whole_table(f"{level}: format", *titles)
        for format in formats:
            marked = [f"[bold]{text}[/]" if best else text for text, best in cells(speeds, level, format)]
            table.add_row(format, *marked)
        console.print()
        console.print(table)
    console.print(
        f"GMAC/s, 10^9 multiply-adds a second, with {speeds.threads} thread{'s' * (speeds.threads != 1)} (ratio to "
        f"FP16 at the same level); measured {speeds.measured}, --fresh measures again",
        soft_wrap=True,
        highlight=False,
    )
    if not speeds.is_quiet:
        console.print(
            f"Other programs kept {speeds.other_cores:.1f} cores busy meanwhile: do not trust these speeds. They are "
            "not kept; run this again when nothing else is at work.",
            soft_wrap=True,
            highlight=False,
        )


def _facts(machine: Machine) -> list[tuple[str, str]]:
    from zeropoint.kernels import library

    missing = library.missing()
    bandwidth = machine.memory_bandwidth_gbps
    return [
        (
            "processor",
            f"{machine.processor}, {machine.cores} usable core{'s' * (machine.cores != 1)}, {machine.system}",
        ),
        ("instruction sets", " ".join(machine.isa_levels)),
        (
            "kernels",
            missing or f"native, with {library.active_isa()} instructions (ZEROPOINT_ISA forces others)",
        ),
        (
            "memory",
            f"{numbers.size(machine.ram_total_bytes)}, {numbers.size(machine.ram_available_bytes)} free, "
            + ("bandwidth not measured" if bandwidth is None else f"read at {bandwidth:.0f} GB/s"),
        ),
        ("accelerators", ", ".join(machine.accelerators) or "none"),
    ]


def _kernels() -> list[dict[str, str]]:
    from zeropoint import kernels
    from zeropoint.values.scheme import PRESETS, parse

    rows = []
    for name in SHOWN:
        scheme = parse(name)
        backend, refusals = kernels.choose(scheme, (4096, 4096))
        note = "; ".join(f"{kernel}: {why}" for kernel, why in refusals.items())
        short = backend.__name__.rpartition(".")[2]
        rows.append(
            {
                "format": name,
                "kernel": short,
                "note": note or (f"short for {scheme}" if name in PRESETS else ""),
            }
        )
    return rows


def _advice(machine: Machine) -> list[str]:
    lines = []
    if machine.memory_bandwidth_gbps:
        fp16, int8, int4 = (machine.memory_bandwidth_gbps / per_weight for per_weight in BYTES_PER_WEIGHT)
        lines.append(
            "Decoding reads every weight once per token, so memory bandwidth limits its speed: here a model with 1B "
            f"parameters decodes at most {fp16:.0f} tokens/s in FP16, {int8:.0f} in INT8, {int4:.0f} in INT4."
        )
    free = machine.ram_available_bytes * 0.8 / 1e9
    fp16, int8, int4 = (free / per_weight for per_weight in BYTES_PER_WEIGHT)
    lines.append(
        f"With {numbers.size(machine.ram_available_bytes)} of memory free there is room for about {fp16:.0f}B "
        f"parameters in FP16, {int8:.0f}B in INT8, {int4:.0f}B in INT4."
    )
    if machine.accelerators:
        lines.append("Accelerators are not used yet: the kernels here run on the CPU.")
    if set(machine.isa_levels) == {"scalar"}:
        lines.append(
            "This CPU has none of the instruction sets that the kernels use: expect a tenth of the usual speed."
        )
    return lines


#: Bytes per weight in FP16, in INT8, and in INT4 with groups of 32; scales included.
BYTES_PER_WEIGHT = (2.0, 1.01, 0.5625)
