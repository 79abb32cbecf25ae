"""Compare a model with artifacts made from it: size, memory, speed, quality, sample answers.

Speed and memory of each model are measured in a fresh process. Quality is measured on a text, token by token, against
MODEL computed in float32.

  zeropoint compare MODEL INT8 INT4 --html report.html
  zeropoint compare MODEL INT4 INT4.gguf ONNX-FOLDER GPTQ-FOLDER

Files of other runtimes may stand in the place of an artifact: .gguf files run in llama.cpp, or in Zeropoint if
llama-cpp-python is not installed; .onnx files and ONNX folders run in onnxruntime; GPTQ, AWQ and compressed-tensors
folders run in transformers.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path

from zeropoint.cli.common import (
    add_engine_option,
    add_json_option,
    add_revision_option,
    add_speed_options,
    add_stream_option,
    add_text_options,
    add_threads_option,
    check_writable,
    progress_bar,
    refuse_ignored,
    show_report,
    write_text,
)
from zeropoint.cli.console import readable
from zeropoint.cli.option_values import input_file
from zeropoint.machine.cores import default_threads

HELP = "compare a model with artifacts made from it: table, JSON, HTML page"

#: Default of --repeats.
REPEATS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint compare`."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="the original model that the artifacts were made from: checkpoint folder, .gguf file or hub name",
    )
    parser.add_argument(
        "artifacts",
        metavar="ARTIFACT",
        nargs="+",
        help="an artifact, a .gguf or .onnx file, or the folder of an ONNX, GPTQ, AWQ or compressed-tensors model",
    )
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write the report as one self-contained page"
    )
    parser.add_argument(
        "--sensitivity",
        type=input_file,
        metavar="FILE",
        help="add the sensitivity table to the page: a file written by `zeropoint inspect --sensitivity --json`",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table as Markdown")
    parser.add_argument(
        "--prompt",
        type=readable,
        action="append",
        metavar="TEXT",
        help="a question for each model's sample answers; repeatable (default: four questions)",
    )
    add_speed_options(parser, repeats=REPEATS)
    parser.add_argument(
        "--no-speed",
        action="store_true",
        help="compare size and quality alone: do not measure speed and memory",
    )
    add_text_options(parser)
    add_stream_option(parser)
    add_engine_option(parser)
    add_revision_option(parser)
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Measure all models, print and write the report, and return 0."""
    from zeropoint.evaluate import compare
    from zeropoint.evaluate.quality.greedy_answers import DEFAULT_PROMPTS
    from zeropoint.render import markdown, page
    from zeropoint.values.sensitivity import load

    if args.no_speed:
        refuse_ignored(args, "with --no-speed", prompt_tokens=512, new_tokens=128, repeats=REPEATS)
    check_writable(args.json, args.html, args.markdown)
    table = None if args.sensitivity is None else load(args.sensitivity)
    with progress_bar() as progress:
        # The measuring processes run evaluate/worker/process.py, which reads memory from runtime/host_memory.py.
        report = compare(
            args.model,
            args.artifacts,
            revision=args.revision,
            text=args.text,
            tokens=args.tokens,
            threads=default_threads(args.threads),
            engine=args.engine,
            streamed=args.stream,
            prompts=args.prompt or DEFAULT_PROMPTS,
            prompt_tokens=args.prompt_tokens,
            new_tokens=args.new_tokens,
            repeats=args.repeats,
            speed=not args.no_speed,
            command=shlex.join(["zeropoint", *sys.argv[1:]]),
            progress=progress,
        )
    if table is not None:
        report = replace(report, extra={**report.extra, "sensitivity": table.to_json()})
    show_report(report)
    write_text(args.json, report.dumps())
    if args.markdown is not None:
        write_text(args.markdown, markdown(report))
    if args.html is not None:
        write_text(args.html, page(report))
    return 0
