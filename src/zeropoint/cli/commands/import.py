"""Convert a model that another tool quantized into an artifact, to measure, run and export it.

  zeropoint import model.gguf --out OUT          Q8_0, Q5_0 and Q4_0 of llama.cpp keep codes and scales
  zeropoint import FOLDER --out OUT              GPTQ, AWQ, AutoRound or compressed-tensors (llm-compressor)

No weight is quantized again. Weights in formats without an equivalent scheme here (K-quants) are stored in float, with
a note.
"""

from __future__ import annotations

import argparse
import time

from zeropoint.cli.common import (
    add_json_option,
    add_strict_option,
    check_writable,
    progress_bar,
    strict_code,
    write_json,
)
from zeropoint.render import numbers

HELP = "convert a model that another tool quantized into an artifact"
INTERRUPTED = "interrupted: no half-written artifact was left behind"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint import`."""
    parser.add_argument(
        "model",
        metavar="QUANTIZED",
        help="a .gguf file, or the folder of a model that another tool quantized",
    )
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="OUT",
        help="the artifact folder to write; must not exist unless --overwrite is given",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an artifact")
    add_strict_option(parser, "something of the model is kept in float or left out, as a note says")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Write the artifact, print what it holds, and return 0."""
    from zeropoint.importers import import_model

    check_writable(args.json)
    start = time.perf_counter()
    with progress_bar() as bar:
        result = import_model(args.model, args.out, overwrite=args.overwrite, progress=bar)
    seconds = time.perf_counter() - start
    formats = ", ".join(f"{count} {name}" for name, count in result.formats.items())
    print(
        f"{args.out}: {numbers.size(result.tensor_bytes)} from {result.format} ({formats}), {seconds:.1f} s"
    )
    for note in result.notes:
        print(f"note: {note}")
    data = {"format": result.format, "weights_bytes": result.tensor_bytes, "formats": dict(result.formats)}
    write_json(args.json, {**data, "notes": list(result.notes), "seconds": seconds})
    return strict_code(args, result.notes)
