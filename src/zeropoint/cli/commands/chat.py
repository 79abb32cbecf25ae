"""Talk with a model in the terminal. What was said before stays in the key-value cache between turns.

/reset  begin a new conversation
/exit   leave (so does Ctrl-D); Ctrl-C ends an answer
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from zeropoint.cli.common import (
    add_generation_options,
    add_threads_option,
    open_for_generation,
    positive_int,
    sampling_of,
)
from zeropoint.cli.console import ask, readable, reader_left

if TYPE_CHECKING:
    from zeropoint.runtime.protocol import Runner
    from zeropoint.runtime.sampling import Sampling
    from zeropoint.tokenizer import Message

HELP = "talk with a model in the terminal"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "artifact", metavar="ARTIFACT", help="an artifact folder, or a Hugging Face checkpoint folder"
    )
    parser.add_argument(
        "--system", type=readable, metavar="TEXT", help="the system message, where the model has one"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive_int, default=512, metavar="N", help="of each answer"
    )
    add_generation_options(parser)
    add_threads_option(parser)


def run(args: argparse.Namespace) -> int:
    from zeropoint.errors import UsageError

    sampling = sampling_of(args)
    runner = open_for_generation(args)
    start: list[Message] = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(start)
    for line in _lines():
        if line == "/reset":
            messages = list(start)
            continue
        if line == "/exit":
            break
        asked: list[Message] = [*messages, {"role": "user", "content": line}]
        try:
            answer = _answer(runner, asked, args.max_new_tokens, args.stop, sampling)
        except UsageError as error:  # the conversation has outgrown the model's context, say
            sys.stderr.write(f"{error} (/reset begins a new conversation)\n")
            continue
        messages = [*asked, {"role": "assistant", "content": answer}]
        if reader_left():
            break
    return 0


def _answer(
    runner: Runner, messages: list[Message], max_new_tokens: int, stop: list[str], sampling: Sampling
) -> str:
    """Stream one answer to the terminal; Ctrl-C cuts it short, and what was said counts."""
    from zeropoint.runtime.model import generate_text

    shown: list[str] = []

    def show(text: str) -> bool:
        sys.stdout.write(text)
        sys.stdout.flush()
        shown.append(text)
        return reader_left()

    with contextlib.suppress(KeyboardInterrupt):
        generate_text(
            runner,
            runner.chat_tokens(messages),
            show,
            max_new_tokens=max_new_tokens,
            stop=stop,
            sampling=sampling,
        )
    sys.stdout.write("\n")
    return "".join(shown)


def _lines() -> Iterator[str]:
    """What the user types, until the end of the input; empty lines are passed over."""
    while (line := ask("> ")) is not None:
        if line := line.strip():
            yield line
