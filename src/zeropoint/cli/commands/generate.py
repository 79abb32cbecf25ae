"""Continue a prompt with a quantized or unquantized model. The text is written while it is generated."""

from __future__ import annotations

import argparse
import sys
import time

from zeropoint.cli.common import (
    add_generation_options,
    add_json_option,
    add_threads_option,
    check_writable,
    open_for_generation,
    sampling_of,
    write_json,
)
from zeropoint.cli.console import readable, reader_left
from zeropoint.cli.option_values import whole

HELP = "continue a prompt with a model"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint generate`."""
    parser.add_argument(
        "artifact",
        metavar="ARTIFACT|MODEL",
        help="an artifact, or an original model: checkpoint folder, .gguf file or hub name",
    )
    parser.add_argument("--prompt", type=readable, required=True, metavar="TEXT", help="the text to continue")
    parser.add_argument("--chat", action="store_true", help="wrap the prompt in the model's chat template")
    parser.add_argument(
        "--max-new-tokens",
        type=whole(1, 64),
        default=64,
        metavar="N",
        help="most tokens to generate (default: 64)",
    )
    add_generation_options(parser)
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print the continuation, write --json, and return 0."""
    from zeropoint.errors import UsageError
    from zeropoint.runtime.model import generate_text

    check_writable(args.json)
    sampling = sampling_of(args)
    runner = open_for_generation(args)
    tokens = runner.chat_prompt(args.prompt) if args.chat else runner.encode_prompt(args.prompt)
    if not tokens:
        raise UsageError("the prompt is empty")
    pieces: list[str] = []

    def show(text: str) -> bool:
        sys.stdout.write(text)
        sys.stdout.flush()
        pieces.append(text)
        return reader_left() and args.json is None  # True ends the generation: nobody reads the rest

    start = time.perf_counter()
    generated = generate_text(
        runner, tokens, show, max_new_tokens=args.max_new_tokens, stop=args.stop, sampling=sampling
    )
    seconds = time.perf_counter() - start
    sys.stdout.write("\n")
    sys.stderr.write(f"{len(generated)} tokens in {seconds:.1f} s by the {runner.engine} engine\n")
    write_json(
        args.json,
        {
            "model": runner.name,
            "engine": runner.engine,
            "engine_reason": runner.engine_reason,
            "prompt": args.prompt,
            "prompt_tokens": tokens,
            "text": "".join(pieces),
            "tokens": generated,
            "seconds": seconds,
        },
    )
    return 0
