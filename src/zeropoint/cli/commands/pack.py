"""Pack a model into one file for programs that embed the C library, without Python.

  zeropoint pack ARTIFACT --out model.zeropoint

The file holds the weights in the kernels' layout, the same for every processor, and the description of the model. It
has no tokenizer. examples/c/generate.c reads it. A file serves one version of the library.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from zeropoint.errors import UsageError, reason
from zeropoint.render import numbers

HELP = "pack a model into one file for programs that embed the C library"
INTERRUPTED = "interrupted: no file was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint pack`."""
    parser.add_argument(
        "model", type=Path, metavar="MODEL", help="an artifact, a checkpoint folder or a GGUF file"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        metavar="FILE",
        help="the file to write; --overwrite replaces it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")


def run(args: argparse.Namespace) -> int:
    """Write the file, print its size, and return 0."""
    from zeropoint.runtime.native import library, loading, model_file

    out: Path = args.out.expanduser()
    if out.is_dir() or (out.exists() and not args.overwrite):
        raise UsageError(f"{out} exists: name another file, or give --overwrite to replace a file")
    library.load()
    spec, weights = loading.pack(args.model.expanduser())
    try:
        nbytes = model_file.write(out, spec, weights)
    except OSError as cause:
        raise UsageError(f"{out} cannot be written: {reason(cause)}") from cause
    print(
        f"{out}: {numbers.size(nbytes)}, {spec.config.layers} layers, {spec.config.max_positions} positions"
    )
    return 0
