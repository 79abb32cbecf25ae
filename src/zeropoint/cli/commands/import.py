"""Turn a model that another tool quantized into an artifact, its numbers kept: to measure, run and export it.

  zeropoint import model.gguf --out OUT          llama.cpp's Q8_0, Q5_0, Q4_0 keep their grid
  zeropoint import FOLDER --out OUT              GPTQ, AWQ, AutoRound or compressed-tensors (llm-compressor)

No weight is quantized again. What has no integer grid here (a K-quant) is kept in float, and said.
"""

from __future__ import annotations

import argparse
import time

from zeropoint.cli.common import add_json_option, check_writable, progress_bar, write_json
from zeropoint.render import numbers

HELP = "take over a model quantized by another tool"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="SRC", help="a .gguf file, or the folder of a quantized model")
    parser.add_argument(
        "-o", "--out", required=True, metavar="OUT", help="the artifact's folder; must not exist"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is an artifact already")
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    from zeropoint.importers import import_model

    check_writable(args.json)
    start = time.perf_counter()
    with progress_bar() as bar:
        made = import_model(args.model, args.out, overwrite=args.overwrite, progress=bar)
    seconds = time.perf_counter() - start
    formats = ", ".join(f"{count} {name}" for name, count in made.formats.items())
    print(f"{args.out}: {numbers.size(made.tensor_bytes)} from {made.format} ({formats}), {seconds:.1f} s")
    for note in made.notes:
        print(f"note: {note}")
    result = {"format": made.format, "weights_bytes": made.tensor_bytes, "formats": dict(made.formats)}
    write_json(args.json, {**result, "notes": list(made.notes), "seconds": seconds})
    return 0
