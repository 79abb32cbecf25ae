"""Export an artifact to another runtime's format, and verify the exported file.

  zeropoint export ARTIFACT --to gguf --out model.gguf
  zeropoint export MODEL --to gguf --type Q4_K_M --out model.gguf

Export keeps the weights' values: it re-encodes the integer codes and never quantizes again. An artifact that the target
cannot represent exactly is refused with the reason. Verifying reads every weight back and compares the values; if the
other runtime is installed, both models also run on the same tokens, so any difference comes from the arithmetic of the
runtimes. If writing or verifying fails, no file is left behind.

With --type, an original MODEL is exported instead of an artifact: its float weights are quantized to a type that
only the target has, such as GGUF's K-quants, with calibration on a text.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from zeropoint import exporters
from zeropoint.cli.common import (
    add_calibration_options,
    add_json_option,
    add_revision_option,
    add_strict_option,
    add_threads_option,
    check_writable,
    progress_bar,
    strict_code,
    write_json,
)
from zeropoint.machine.cores import default_threads
from zeropoint.render import numbers

if TYPE_CHECKING:
    from zeropoint.evaluate.gate.export_agreement import Agreement

HELP = "export an artifact to another runtime's format, and verify it"
INTERRUPTED = "interrupted: no file was left behind that was not verified"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint export`."""
    parser.add_argument(
        "source",
        metavar="ARTIFACT|MODEL",
        help="an artifact folder; with --type an original model: checkpoint folder or hub name",
    )
    parser.add_argument("--to", required=True, choices=exporters.names(), metavar="T", help=_targets())
    parser.add_argument(
        "-o",
        "--out",
        required=True,
        metavar="FILE",
        help="the file or folder to write; must not exist unless --overwrite is given",
    )
    parser.add_argument(
        "--type",
        metavar="TYPE",
        help="quantize the original model to this type of the target; for gguf a name of llama.cpp such as Q4_K_M",
    )
    add_calibration_options(
        parser, "calibration text or chat .jsonl (default: a built-in sample)", when="with --type: "
    )
    parser.add_argument(
        "--verify",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="read the file back, compare every weight, and run the file in the target runtime if that is installed "
        "(default: verify)",
    )
    parser.add_argument(
        "--no-run", action="store_true", help="read the file back, but do not run it in the target runtime"
    )
    add_revision_option(parser, "with --type, SOURCE")
    add_strict_option(parser, "with --type, a weight was rounded to nearest instead of calibrated")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE if it exists")
    add_threads_option(parser)
    add_json_option(parser)


def _targets() -> str:
    return f"the target runtime or format: {', '.join(exporters.names())}"


def run(args: argparse.Namespace) -> int:
    """Write the file, verify it, print the result, and return 0."""
    from zeropoint.api import export

    check_writable(args.json)
    start = time.perf_counter()
    with progress_bar() as bar:
        result = export(
            args.source,
            args.to,
            args.out,
            type=args.type,
            revision=args.revision,
            calibration=args.calibration,
            calibration_tokens=args.calibration_tokens,
            verify=args.verify,
            overwrite=args.overwrite,
            progress=bar,
        )
    seconds = time.perf_counter() - start
    formats = ", ".join(f"{count} {name}" for name, count in result.written.formats.items())
    print(f"{args.out}: {numbers.size(result.nbytes)} for {args.to} ({formats} tensors), {seconds:.1f} s")
    if result.verified is None:
        print("not verified: leave out --no-verify to read the file back and compare it")
    else:
        print(f"verified: {result.verified:,} weights read back, each equal in float32")
    agreement = None
    if result.verified is not None and not args.no_run:
        agreement = _run_both(args, result.verified)
    for note in result.written.notes:
        print(f"note: {note}")
    section = {} if agreement is None else {"agreement": agreement.to_json()}
    write_json(args.json, {**result.to_json(), "seconds": seconds, **section})
    return strict_code(args, result.written.warnings)


def _run_both(args: argparse.Namespace, weights: int) -> Agreement | None:
    """Run the source and the exported file on the same tokens, print how well they agree, and return the agreement.

    Returns None, with the reason printed, if the target runtime cannot run the file here.
    """
    from zeropoint.errors import UnsupportedError
    from zeropoint.evaluate.gate.export_agreement import agreement

    try:
        with progress_bar() as progress:
            result = agreement(
                args.source,
                args.out,
                weights=weights,
                lossy=args.type is not None,
                revision=args.revision,
                threads=default_threads(args.threads),
                progress=progress,
            )
    except UnsupportedError as cause:
        print(f"not run: {cause}")
        return None
    print("\n".join(result.sentences()))
    return result
