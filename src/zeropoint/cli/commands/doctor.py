"""Show what Zeropoint finds on this machine: cores, instruction sets, memory, the kernel that each format uses (and why
a faster kernel is not used), and the model sizes and speeds to expect.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from zeropoint.cli.common import add_json_option, check_writable, this_machine, write_json
from zeropoint.cli.console import rich_console, whole_table
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.machine.detect import Machine

HELP = "show this machine, the kernels it uses, and the speed to expect"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint doctor`."""
    add_json_option(parser)
    parser.add_argument(
        "--no-measure", action="store_true", help="do not measure the memory bandwidth (saves a second)"
    )


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

    check_writable(args.json)
    machine = this_machine(measure=not args.no_measure)
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
    console.print()
    for line in advice:
        console.print(line, soft_wrap=True)
    write_json(args.json, {"machine": machine.to_json(), "kernels": rows, "advice": advice})
    return 0


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
