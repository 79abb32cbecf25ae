"""Show this machine as Zeropoint sees it: cores, instruction sets, memory, which kernels run and why not."""

from __future__ import annotations

import argparse

from zeropoint.cli.common import add_json_option, check_writable, human_bytes, write_json

HELP = "the machine, its kernels, and what follows"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_option(parser)
    parser.add_argument(
        "--no-measure", action="store_true", help="skip the one-second memory bandwidth measurement"
    )


def run(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.table import Table

    from zeropoint import kernels
    from zeropoint.machine import Machine
    from zeropoint.scheme import PRESETS, parse

    check_writable(args.json)
    machine = Machine.detect(measure=not args.no_measure)
    facts = Table(show_header=False, box=None, pad_edge=False)
    for label, value in machine.describe():
        facts.add_row(f"[bold]{label}", value)
    formats = Table("format", "kernel", "note", box=None, pad_edge=False)
    rows = []
    for name in ("int8", "int4", "int4:g128:sym:bf16:a8token", "int8:channel:asym:bf16"):
        scheme = parse(name)
        backend, refusals = kernels.choose(scheme, (4096, 4096))
        short = backend.__name__.rpartition(".")[2]
        meaning = f"= {scheme}" if name in PRESETS else ""
        note = "; ".join(f"{kernel}: {why}" for kernel, why in refusals.items()) or meaning
        formats.add_row(name, short, note)
        rows.append({"format": str(scheme), "kernel": short, "refusals": refusals})
    console = Console()
    console.print(facts)
    console.print()
    console.print(formats)
    console.print()
    advice = _advice(machine)
    for line in advice:
        console.print(line, soft_wrap=True)
    write_json(args.json, {"machine": machine.to_json(), "kernels": rows, "advice": advice})
    return 0


def _advice(machine: object) -> list[str]:
    from zeropoint.machine import Machine

    assert isinstance(machine, Machine)
    lines = []
    if machine.memory_bandwidth_gbps:
        tokens = machine.memory_bandwidth_gbps * 1e9
        lines.append(
            "Decoding reads every weight once a token, so memory bandwidth bounds it: a 1B-parameter model decodes at "
            f"no more than {tokens / 2e9:.0f} tokens/s in FP16, {tokens / 1.01e9:.0f} in INT8, "
            f"{tokens / 0.58e9:.0f} in INT4 here."
        )
    largest = machine.ram_available_bytes * 0.8
    lines.append(
        f"{human_bytes(machine.ram_available_bytes)} of memory is free: room for about "
        f"{largest / 2e9:.0f}B parameters in FP16, {largest / 1.01e9:.0f}B in INT8, {largest / 0.58e9:.0f}B in INT4."
    )
    if machine.accelerators:
        lines.append("Accelerators found are not used yet: the kernels here run on the CPU.")
    return lines
