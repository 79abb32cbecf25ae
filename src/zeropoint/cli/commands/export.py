"""Write an artifact for another runtime, read it back and compare every weight, and run both where that runtime is
installed.

  zeropoint export ARTIFACT --to gguf --out model.gguf
  zeropoint export MODEL --to gguf --type Q4_K_M --out model.gguf

The numbers stay what they are: integer grids are re-encoded, never quantized again, and an artifact that the target
cannot hold exactly is refused with the reason. Nothing is left behind unless all of it was written and verified. What
differs when both run is the two runtimes' arithmetic.

A type of the target's own, such as GGUF's K-quants, is no format of an artifact: with --type it is made of the original
model's weights, observed on a text, and never of weights that were quantized before.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint import exporters
from zeropoint.cli.common import (
    add_json_option,
    add_threads_option,
    check_writable,
    default_threads,
    positive_int,
    progress_bar,
    progress_fraction,
    write_json,
)
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.evaluate.agreement import Agreement

HELP = "write an artifact for another runtime, and verify it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="ARTIFACT",
        help="an artifact's folder; with --type an original model's, or a hub name",
    )
    parser.add_argument("--to", required=True, choices=exporters.names(), metavar="T", help=_targets())
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="what to write; must not exist")
    parser.add_argument(
        "--type",
        metavar="TYPE",
        help="quantize to a type of the target's own; for gguf llama.cpp's names, such as Q4_K_M",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        metavar="TEXT",
        help="with --type: text or chat .jsonl to observe the model on (default: a built-in sample)",
    )
    parser.add_argument(
        "--calibration-tokens",
        type=positive_int,
        metavar="N",
        help="with --type: tokens of it to read (default: 65536)",
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the file back, compare every weight, and run it in its own runtime if that is installed",
    )
    parser.add_argument("--no-run", action="store_true", help="of that, compare the weights alone")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_threads_option(parser)
    add_json_option(parser)


def _targets() -> str:
    return f"the target: {', '.join(exporters.names())}"


def run(args: argparse.Namespace) -> int:
    from zeropoint.api import export

    check_writable(args.json)
    start = time.perf_counter()
    with progress_bar() as bar:
        made = export(
            args.source,
            args.to,
            args.out,
            type=args.type,
            calibration=args.calibration,
            calibration_tokens=args.calibration_tokens,
            verify=args.verify,
            overwrite=args.overwrite,
            progress=bar,
        )
    seconds = time.perf_counter() - start
    formats = ", ".join(f"{count} {name}" for name, count in made.written.formats.items())
    print(f"{args.out}: {numbers.size(made.nbytes)} for {args.to} ({formats} tensors), {seconds:.1f} s")
    if made.verified is None:
        print("not verified: leave out --no-verify to read the file back and compare it")
    else:
        print(f"verified: {made.verified:,} weights read back, each the number that was meant, in float32")
    ran = None
    if made.verified is not None and not args.no_run:
        ran = _run_both(args, made.verified)
    for note in made.written.notes:
        print(f"note: {note}")
    agreement = {} if ran is None else {"agreement": ran.to_json()}
    write_json(args.json, {**made.to_json(), "seconds": seconds, **agreement})
    return 0


def _run_both(args: argparse.Namespace, weights: int) -> Agreement | None:
    """Run source and file on the same tokens and say how they agree; None when there is nothing to run the file."""
    from zeropoint.errors import UnsupportedError
    from zeropoint.evaluate.agreement import agreement

    try:
        with progress_fraction() as progress:
            ran = agreement(
                args.source,
                args.out,
                weights=weights,
                lossy=args.type is not None,
                threads=default_threads(args.threads),
                progress=progress,
            )
    except UnsupportedError as cause:
        print(f"not run: {cause}")
        return None
    print("\n".join(ran.sentences()))
    return ran
