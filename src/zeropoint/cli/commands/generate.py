"""Continue a prompt with a quantized model (or an unquantized checkpoint), streaming the text."""

from __future__ import annotations

import argparse
import sys
import time

from zeropoint.cli.common import (
    add_json_option,
    add_threads_option,
    check_writable,
    default_threads,
    positive_int,
    write_json,
)

HELP = "text from an artifact"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help="an artifact folder, or a Hugging Face checkpoint folder"
    )
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--chat", action="store_true", help="put the prompt into the model's chat template")
    parser.add_argument("--max-new-tokens", type=positive_int, default=64, metavar="N")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 (default) is greedy")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the sampling, when the temperature is above 0"
    )
    parser.add_argument("--engine", choices=("universal",), default="universal")
    add_threads_option(parser)
    add_json_option(parser)


def run(args: argparse.Namespace) -> int:
    from zeropoint.errors import UsageError
    from zeropoint.runtime import open_runner

    check_writable(args.json)
    if args.temperature < 0:
        raise UsageError(f"the temperature is 0 (greedy) or above, not {args.temperature}")
    runner = open_runner(args.artifact, threads=default_threads(args.threads), engine=args.engine)
    tokens = runner.chat_prompt(args.prompt) if args.chat else runner.encode(args.prompt)
    if not tokens:
        raise UsageError("the prompt is empty")
    printed = ""
    generated: list[int] = []

    def show(token: int) -> None:
        nonlocal printed
        generated.append(token)
        if token in runner.stop_tokens:
            return
        text = runner.decode(generated)
        if text.endswith("\ufffd"):  # half of a multi-byte character: wait for the rest
            return
        sys.stdout.write(text[len(printed) :])
        sys.stdout.flush()
        printed = text

    start = time.perf_counter()
    runner.generate(
        tokens,
        max_new_tokens=args.max_new_tokens,
        on_token=show,
        stop=runner.stop_tokens,
        temperature=args.temperature,
        seed=args.seed,
    )
    seconds = time.perf_counter() - start
    sys.stdout.write("\n")
    write_json(
        args.json,
        {
            "model": runner.name,
            "engine": runner.engine,
            "prompt": args.prompt,
            "prompt_tokens": tokens,
            "text": printed,
            "tokens": generated,
            "seconds": seconds,
        },
    )
    return 0
