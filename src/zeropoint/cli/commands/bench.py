"""Measure one model in a fresh process: load time, prefill and decode speed, resident memory.

Prefill is reading a prompt; decode is generating, one token after another. Besides artifacts and original models, files
of other runtimes are measured: .gguf files in llama.cpp, or in Zeropoint if llama-cpp-python is not installed; .onnx
files and ONNX folders in onnxruntime; GPTQ, AWQ and compressed-tensors folders in transformers.
"""

from __future__ import annotations

import argparse
import shlex
import sys

from zeropoint.cli.common import (
    add_engine_option,
    add_json_option,
    add_revision_option,
    add_speed_options,
    add_threads_option,
    check_writable,
    progress_bar,
    show_report,
    write_text,
)
from zeropoint.cli.option_values import whole
from zeropoint.machine.cores import default_threads

HELP = "measure load time, speed and memory of one model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint bench`."""
    parser.add_argument(
        "artifact",
        metavar="ARTIFACT|MODEL",
        help="an artifact, an original model (checkpoint folder, .gguf file or hub name), or another runtime's file or "
        "folder",
    )
    add_speed_options(parser, repeats=5)
    parser.add_argument(
        "--batch",
        type=whole(1, 4),
        default=1,
        metavar="N",
        help="sequences that are generated at once (default: 1)",
    )
    add_engine_option(parser)
    add_revision_option(parser)
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the model, print and write the report, and return 0."""
    from zeropoint.evaluate import bench

    check_writable(args.json)
    with progress_bar() as progress:
        report = bench(
            args.artifact,
            revision=args.revision,
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
