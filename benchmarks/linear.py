"""One linear layer: our integer kernels against every int8 and int4 product that torch has on the CPU.

    python benchmarks/linear.py --threads 2 --rows 1 --json 1.json     # one run for each number of rows, then
    python benchmarks/linear.py --from 1.json 8.json 128.json 512.json --markdown benchmarks/results/linear.md

All contestants run in this process, in turns: one round times each once, and rounds repeat, so that a
slow second on a shared machine hurts all alike; what other processes take of the processors is measured, and said.
Torch's products take an input that is already in their type, so ours are timed twice: the product alone, of an
input that is quantized already, as a layer gets it whose norm or neighbour has quantized it; and with the
quantization, from float32. At few rows (`--rotate-rows`) each call uses the next of many copies of the weight, more
in all than `--rotate-mb`, so that no cache holds the one in use.

Two comparisons, because an `a16token` activation is two int8 digits and costs two products: what a layer takes
(`a16token`) against the fastest that torch has, and one int8 product (`a8token`) against torch's, `_int_mm`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import levels
import numpy as np
import pages
import torch
import torch.nn.functional as F  # noqa: N812

from zeropoint.kernels import active_isa, library, native
from zeropoint.machine.cores import default_threads, usable_cores
from zeropoint.machine.load import OtherLoad
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import parse

SHAPES = ((2048, 2048), (5632, 2048), (576, 1536), (49152, 576))
INT8, INT4 = "int8:channel:sym:bf16:a16token", "int4:g32:sym:nested:a16token"
INT8_TOKEN, INT4_TOKEN = "int8:channel:sym:bf16:a8token", "int4:g32:sym:nested:a8token"
OURS = (INT8, INT8_TOKEN, INT4, INT4_TOKEN)
FOUR_BITS = "_weight_int4pack_mm_for_cpu g32"
ONE_INT8_PRODUCT = "_int_mm"
FLOATS = "F.linear"
SHARED = 0.03  # of the processors in use by others: from there on the page says so


@dataclass(frozen=True)
class Contestant:
    """A product by name; `prepare(copies)` returns a call that uses copy `i % copies`, and a copy's bytes."""

    name: str
    prepare: Callable[[int], tuple[Callable[[int], object], int]]


def our_weight(text: str, shape: tuple[int, int]) -> QuantizedTensor:
    scheme = parse(text)
    rng = np.random.default_rng(0)
    grid = scheme.scale_shape(shape)
    codes = rng.integers(scheme.qmin, scheme.qmax + 1, shape, dtype=np.int8)
    zero_point = None
    if not scheme.symmetric:
        zero_point = rng.integers(scheme.qmin, scheme.qmax + 1, grid, dtype=np.int8)
    return QuantizedTensor(scheme, codes, np.full(grid, 2.0**-7, np.float32), zero_point)


def ours(text: str, shape: tuple[int, int], x: torch.Tensor, threads: int, *, quantizes: bool) -> Contestant:
    weight = our_weight(text, shape)
    out = torch.empty(len(x), shape[0])
    zp = library.load()

    def prepare(copies: int) -> tuple[Callable[[int], object], int]:
        packed = [native.pack(weight) for _ in range(copies)]
        x_ptr, out_ptr, rows = x.data_ptr(), out.data_ptr(), len(x)
        codes = torch.empty(zp.zp_input_bytes(packed[0].address, rows) + 64, dtype=torch.uint8)
        codes_ptr = -(-codes.data_ptr() // 64) * 64
        library.check(zp.zp_quantize(packed[0].address, x_ptr, rows, shape[1], codes_ptr, threads))

        def whole(i: int) -> None:
            native.linear_ptr(x_ptr, rows, packed[i % copies], 0, out_ptr, threads)

        def product(i: int, keep: torch.Tensor = codes) -> None:
            address = packed[i % copies].address
            library.check(zp.zp_multiply(address, codes_ptr, rows, None, out_ptr, shape[0], threads))

        return whole if quantizes else product, packed[0].nbytes

    return Contestant(f"zeropoint {text}{', from float32' if quantizes else ''}", prepare)


def theirs(shape: tuple[int, int], x: torch.Tensor) -> list[Contestant]:
    features_out, features_in = shape
    w = torch.randn(shape) * 0.02
    int8 = torch.randint(-127, 128, shape, dtype=torch.int8)
    half = x.bfloat16()
    codes = torch.randint(-127, 128, x.shape, dtype=torch.int8)

    def copied(tensor: torch.Tensor, call: Callable[[torch.Tensor], object]):  # type: ignore[no-untyped-def]
        def prepare(copies: int) -> tuple[Callable[[int], object], int]:
            all_copies = [tensor.clone() for _ in range(copies)]
            return (lambda i: call(all_copies[i % copies])), tensor.nbytes

        return prepare

    def dynamic(copies: int) -> tuple[Callable[[int], object], int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scales, zeros = torch.full((features_out,), 0.01), torch.zeros(features_out, dtype=torch.long)
            quantized = torch.quantize_per_channel(w, scales, zeros, 0, torch.qint8)
        packed = [torch.ops.quantized.linear_prepack(quantized, None) for _ in range(copies)]
        return (lambda i: torch.ops.quantized.linear_dynamic(x, packed[i % copies])), int8.nbytes

    scale = torch.rand(features_out).bfloat16()
    int4 = torch.ops.aten._convert_weight_to_int4pack_for_cpu(
        torch.randint(0, 16, shape, dtype=torch.int32), 1
    )
    scale_and_zero = torch.rand(features_in // 32, features_out, 2).bfloat16()
    int4_product = torch.ops.aten._weight_int4pack_mm_for_cpu
    return [
        Contestant("F.linear float32", copied(w, lambda v: F.linear(x, v))),
        Contestant("F.linear bfloat16", copied(w.bfloat16(), lambda v: F.linear(half, v))),
        Contestant(ONE_INT8_PRODUCT, copied(int8, lambda v: torch._int_mm(codes, v.t()))),
        Contestant("_weight_int8pack_mm", copied(int8, lambda v: torch._weight_int8pack_mm(half, v, scale))),
        Contestant(
            FOUR_BITS,
            copied(int4, lambda v: int4_product(half, v, 32, scale_and_zero)),
        ),
        Contestant("quantized.linear_dynamic", dynamic),
    ]


def measure(
    contestants: list[Contestant], rotate_bytes: int, rounds: int, round_s: float
) -> list[dict[str, object]]:
    prepared = []
    for contestant in contestants:
        _, size = contestant.prepare(1)
        copies = max(1, -(-rotate_bytes // size)) if rotate_bytes else 1
        call, size = contestant.prepare(copies)
        start = time.perf_counter()
        call(0)
        call(1)
        seconds = (time.perf_counter() - start) / 2
        prepared.append((contestant.name, call, size, copies, max(1, int(round_s / seconds))))
    times: dict[str, list[float]] = {name: [] for name, *_ in prepared}
    turn = 0
    for _ in range(rounds):
        for name, call, _, _, calls in prepared:
            time.sleep(0.005)  # until the threads of the contestant before have stopped spinning
            for i in range(max(2, calls // 8)):  # and this one's are awake
                call(turn + i)
            turn += max(2, calls // 8)
            start = time.perf_counter()
            for i in range(calls):
                call(turn + i)
            times[name].append((time.perf_counter() - start) / calls * 1e6)
            turn += calls
    return [
        {
            "name": name,
            "median_us": statistics.median(times[name]),
            "low_us": min(times[name]),
            "high_us": max(times[name]),
            "n": rounds,
            "gbps": size / statistics.median(times[name]) / 1e3,
            "copies": copies,
        }
        for name, _, size, copies, _ in prepared
    ]


def table(results: list[dict[str, object]], header: list[str]) -> str:
    lines = [*header, ""]
    for cell in results:
        rows = cell["rows"]
        assert isinstance(rows, list)
        peers = [r for r in rows if not r["name"].startswith("zeropoint")]
        best = min(peers, key=lambda r: r["median_us"])
        title = f"#### N={cell['out']} K={cell['in']} M={cell['m']}"
        lines += [title + (" (weights rotated)" if cell["rotated"] else ""), ""]
        if (others := cell.get("others", 0.0)) > SHARED:
            lines += [f"**Measured beside other work**, which used {others:.0%} of the processors.", ""]
        lines += [
            "| product | median µs | fastest - slowest | weight GB/s | speed against the best of torch |"
        ]
        lines += ["|---|---|---|---|---|"]
        for r in rows:
            ratio = f"{best['median_us'] / r['median_us']:.2f}"
            spread = f"{r['low_us']:.0f} - {r['high_us']:.0f}"
            rate = f"{r['gbps']:.1f}" if cell["rotated"] else ""
            mark = " (best of torch)" if r is best else ""
            lines.append(f"| {r['name']}{mark} | {r['median_us']:.0f} | {spread} | {rate} | {ratio} |")
        lines.append("")
    return "\n".join(lines)


def summary_row(cell: dict[str, Any]) -> str:
    """Return a table row with the ratios of one cell: torch's time divided by ours, so that more than 1 is faster."""
    us = {r["name"]: r["median_us"] for r in cell["rows"]}
    torch_us = {name: value for name, value in us.items() if not name.startswith("zeropoint")}
    best = min(torch_us, key=lambda name: torch_us[name])
    integers = [name for name in torch_us if not name.startswith(FLOATS)]
    eight_bits = min(torch_us[name] for name in integers if name != FOUR_BITS)

    def ratio(peer_us: float, scheme: str, more: str = "") -> str:
        mine = us.get(f"zeropoint {scheme}{more}")
        return "" if mine is None else f"{peer_us / mine:.2f}"

    of_all = [ratio(torch_us[best], scheme) for scheme in (INT8, INT4)]
    from_float = [ratio(torch_us[best], scheme, ", from float32") for scheme in (INT8, INT4)]
    same_bits = [ratio(eight_bits, INT8), ratio(torch_us[FOUR_BITS], INT4)]
    one_product = [ratio(torch_us[ONE_INT8_PRODUCT], scheme) for scheme in (INT8_TOKEN, INT4_TOKEN)]
    rows = f"{cell['m']}{' (beside other work)' if cell.get('others', 0.0) > SHARED else ''}"
    shape = [f"{cell['out']} x {cell['in']}", rows, best, f"{torch_us[best]:.0f}"]
    return "| " + " | ".join(shape + of_all + from_float + same_bits + one_product) + " |"


def summary(runs: list[dict[str, Any]]) -> str:
    """Return the part on speed: how the runs were measured, and each cell's ratio of our speed to torch's."""
    columns = ["N x K", "M", "best of torch", "µs", "int8", "int4", "int8 from float32", "int4 from float32"]
    columns += ["int8 against torch's 8 bits", "int4 against torch's 4 bits"]
    columns += ["int8 `a8token` against `_int_mm`", "int4 `a8token` against `_int_mm`"]
    lines = [
        *dict.fromkeys(line for run in runs for line in run["header"]),  # each once
        "",
        f"int8 is `{INT8}`, int4 `{INT4}`: two int8 products for each weight. They stand against the fastest of torch,",
        "then against the fastest that reads as many bits (8 bits: all but `F.linear` and `_weight_int4pack_mm`).",
        "The last two columns compare the same arithmetic, one int8 product: ours of `a8token` against `_int_mm`.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + "---|" * len(columns),
        *(summary_row(cell) for run in runs for cell in run["cells"]),
        "",
    ]
    return "\n".join(lines)


def write(runs: list[dict[str, Any]], path: Path) -> None:
    """Write the two parts of these runs into the section of their processor class (see `pages.py`)."""
    level = runs[0].get("level") or active_isa()
    title = "One linear layer: our kernels and torch's, same process"
    cells = [cell for run in runs for cell in run["cells"]]
    pages.write(path, title, "Speed against torch", summary(runs).split("\n"), level=level)
    pages.write(path, title, "Tables", table(cells, []).split("\n"), level=level)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 128, 512])
    parser.add_argument("--shapes", nargs="+", default=[f"{n}x{k}" for n, k in SHAPES], help="out x in")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--round-ms", type=float, default=15.0)
    parser.add_argument("--rotate-rows", type=int, default=8, help="rotate weights up to this many rows")
    parser.add_argument("--rotate-mb", type=int, default=640)
    parser.add_argument("--skip", nargs="*", default=[], help="contestants whose name holds one of these")
    parser.add_argument(
        "--from", dest="runs", type=Path, nargs="+", help="measure nothing: the page of these runs"
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    if options.runs:
        if options.markdown is None:
            parser.error("--from needs --markdown, the page to write")
        write([json.loads(run.read_text()) for run in options.runs], options.markdown)
        return
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    limit = library.read_bandwidth(640 << 20, options.threads, 5) / 1e9
    header = [
        f"- `python benchmarks/linear.py {' '.join(sys.argv[1:])}`, memory read then {limit:.1f} GB/s",
        pages.machine_line(f"torch {torch.__version__}"),
        *levels.notes(),
        f"- memory read: 640 MB by {options.threads} threads, the best of 5; rotated weights take more than "
        f"{options.rotate_mb} MB",
        f"- {options.rounds} interleaved rounds of about {options.round_ms:.0f} ms each; µs a call",
    ]
    results: list[dict[str, object]] = []
    for text in options.shapes:
        features_out, features_in = map(int, text.split("x"))
        for m in options.rows:
            x = torch.randn(m, features_in)
            shape = (features_out, features_in)
            contestants = [
                *(ours(t, shape, x, options.threads, quantizes=q) for t in OURS for q in (False, True)),
                *theirs(shape, x),
            ]
            contestants = [c for c in contestants if not any(word in c.name for word in options.skip)]
            rotated = m <= options.rotate_rows
            others = OtherLoad()
            rows = measure(
                contestants, options.rotate_mb << 20 if rotated else 0, options.rounds, options.round_ms / 1e3
            )
            used = others.cores() / usable_cores()
            cell = {"out": features_out, "in": features_in, "m": m, "rotated": rotated, "rows": rows}
            cell["others"] = used
            results.append(cell)
            print(table([cell], []), flush=True)
    print("\n".join(header))
    run = {"level": active_isa(), "header": header, "cells": results}
    if options.json:
        options.json.write_text(json.dumps(run | {"bandwidth_gbps": limit}, indent=1))
    if options.markdown:
        write([run], options.markdown)


if __name__ == "__main__":
    main()
