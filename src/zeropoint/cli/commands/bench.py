"""Measure one model in a fresh process: load time, prefill and decode speed, resident memory.

MODEL may be an artifact, a checkpoint, or a file of another runtime: GGUF, ONNX, or a folder that another tool
quantized. Files of other runtimes are run by those runtimes.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from zeropoint.cli.common import (
    add_engine_option,
    add_json_option,
    add_speed_options,
    add_threads_option,
    check_writable,
    default_threads,
    positive_int,
    progress_fraction,
    show_report,
    write_text,
)

HELP = "measure load time, prefill, decode and memory of one model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="MODEL", help="an artifact, a checkpoint, or another runtime's file or folder"
    )
    add_speed_options(parser, repeats=5)
    parser.add_argument(
        "--batch", type=positive_int, default=1, metavar="N", help="sequences at once (default: 1)"
    )
    add_engine_option(parser)
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    from zeropoint.evaluate import bench

    check_writable(args.json)
    with progress_fraction() as progress:
        report = bench(
            args.artifact,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            threads=default_threads(args.threads),
            engine=args.engine,
            batch=args.batch,
            repeats=args.repeats,
            command=shlex.join(["zeropoint", *sys.argv[1:]]),
            progress=progress,
        )
    show_report(report)
    write_text(args.json, report.dumps())
    return 0
