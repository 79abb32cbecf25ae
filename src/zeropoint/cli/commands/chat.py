"""Chat with a model in the terminal. The key-value cache keeps the conversation between turns.

/reset  start a new conversation
/exit   quit; Ctrl-D does the same
Ctrl-C  stop the answer; while nothing is being written, quit
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from zeropoint.cli.common import (
    add_generation_options,
    add_threads_option,
    open_for_generation,
    sampling_of,
)
from zeropoint.cli.console import ask, readable, reader_left
from zeropoint.cli.option_values import whole

HELP = "chat with a model in the terminal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint chat`."""
    parser.add_argument(
        "artifact",
        metavar="ARTIFACT|MODEL",
        help="an artifact, or an original model: checkpoint folder, .gguf file or hub name",
    )
    parser.add_argument(
        "--system", type=readable, metavar="TEXT", help="the system message, if the chat template has one"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=whole(1, 512),
        default=512,
        metavar="N",
        help="most tokens of an answer (default: 512)",
    )
    add_generation_options(parser)
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    """Talk until the input ends, and return 0."""
    from zeropoint.errors import UsageError
    from zeropoint.runtime.conversation import Conversation

    sampling = sampling_of(args)
    runner = open_for_generation(args)
    conversation = Conversation(runner, [{"role": "system", "content": args.system}] if args.system else [])
    for line in _lines():
        if line == "/reset":
            conversation.reset()
            continue
        if line == "/exit":
            break
        try:
            conversation.ask(
                line, _show, max_new_tokens=args.max_new_tokens, stop=args.stop, sampling=sampling
            )
        except UsageError as error:  # for example, the conversation is longer than the model's context
            sys.stderr.write(f"{error} (/reset starts a new conversation)\n")
            continue
        sys.stdout.write("\n")
        sys.stdout.flush()
        if reader_left():
            break
    return 0


def _show(text: str) -> bool:
    """Write a piece of the answer; return True to end the answer because nobody reads standard output."""
    sys.stdout.write(text)
    sys.stdout.flush()
    return reader_left()


def _lines() -> Iterator[str]:
    """Yield the lines that the user types, without empty ones, until the end of the input."""
    while (line := ask("> ")) is not None:
        if line := line.strip():
            yield line
