"""Write an artifact for another runtime, then read it back and compare every weight.

  zeropoint export ARTIFACT --to gguf --out model.gguf

The numbers stay what they are: integer grids are re-encoded, never quantized again, and an artifact that the target
cannot hold exactly is refused with the reason. Nothing is left behind unless all of it was written and verified.
"""

from __future__ import annotations

import argparse
import time

from zeropoint import exporters
from zeropoint.cli.common import add_json_option, check_writable, progress_bar, write_json
from zeropoint.render import numbers

HELP = "write an artifact for another runtime, and verify it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("artifact", metavar="ARTIFACT", help="an artifact's folder")
    parser.add_argument("--to", required=True, choices=exporters.names(), metavar="T", help=_targets())
    parser.add_argument("-o", "--out", required=True, metavar="FILE", help="what to write; must not exist")
    parser.add_argument("--no-verify", action="store_true", help="do not read the file back and compare it")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_json_option(parser)


def _targets() -> str:
    return f"the target: {', '.join(exporters.names())}"


def run(args: argparse.Namespace) -> int:
    from zeropoint import artifact

    check_writable(args.json)
    start = time.perf_counter()
    with progress_bar() as bar:
        made = exporters.export(
            artifact.open(args.artifact),
            args.to,
            args.out,
            verify=not args.no_verify,
            overwrite=args.overwrite,
            progress=bar,
        )
    seconds = time.perf_counter() - start
    formats = ", ".join(f"{count} {name}" for name, count in made.written.formats.items())
    print(f"{args.out}: {numbers.size(made.nbytes)} for {args.to} ({formats} tensors), {seconds:.1f} s")
    if made.verified is None:
        print("not verified: leave out --no-verify to read the file back and compare it")
    else:
        print(f"verified: {made.verified:,} weights read back, each the artifact's number in float32")
    for note in made.written.notes:
        print(f"note: {note}")
    write_json(args.json, {**made.to_json(), "seconds": seconds})
    return 0
