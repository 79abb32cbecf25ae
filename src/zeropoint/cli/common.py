"""Helpers that several commands share: common options, result files, progress bars."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.cli.console import readable, rich_console
from zeropoint.errors import UsageError
from zeropoint.files import atomic

if TYPE_CHECKING:
    from zeropoint.machine.detect import Machine
    from zeropoint.runtime.protocol import Runner
    from zeropoint.runtime.sampling import Sampling
    from zeropoint.values.report import Report

Progress = Callable[[str, float, float], None]
"""Called as `progress(what, done, total)`."""


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result as JSON")


def add_threads_option(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads",
        type=positive_int,
        default=None,
        metavar="N",
        help="CPU threads (default: the usable cores)",
    )


def add_text_options(parser: argparse.ArgumentParser) -> None:
    """Add --text and --tokens, the evaluation text."""
    parser.add_argument(
        "--text",
        type=Path,
        metavar="FILE",
        help="UTF-8 evaluation text, documents separated by two blank lines (default: prose shipped with Python)",
    )
    parser.add_argument(
        "--tokens",
        type=positive_int,
        default=8192,
        metavar="N",
        help="tokens of the evaluation text (default: 8192)",
    )


def add_engine_option(parser: argparse.ArgumentParser) -> None:
    """Add --engine."""
    from zeropoint.runtime import ENGINES

    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default="auto",
        help="native (C++, no torch), universal (torch), or auto (default): native if it supports the model",
    )


def add_speed_options(parser: argparse.ArgumentParser, *, repeats: int) -> None:
    """Add the options of speed measurements; `repeats` is the default number of timings."""
    parser.add_argument(
        "--prompt-tokens",
        type=positive_int,
        default=512,
        metavar="N",
        help="tokens of the prompt for the prefill speed (default: 512)",
    )
    parser.add_argument(
        "--new-tokens",
        type=positive_int,
        default=128,
        metavar="N",
        help="generated tokens for the decode speed (default: 128)",
    )
    parser.add_argument(
        "--repeats",
        type=positive_int,
        default=repeats,
        metavar="N",
        help=f"timings of each kind; median and spread are shown (default: {repeats})",
    )


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of sampling, key-value cache, speculation and engine."""
    from zeropoint.runtime import CACHE_TYPES

    group = parser.add_argument_group("choosing tokens")
    group.add_argument(
        "--temperature",
        type=float,
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 (default) is greedy",
    )
    group.add_argument(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="sample from the K most likely tokens (default: from all)",
    )
    group.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens whose probabilities add up to P (default: 1)",
    )
    group.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="sample from tokens at least P times as likely as the most likely token (default: 0)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="R",
        help="above 1, tokens of the text so far become less likely (default: 1)",
    )
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of the sampling; no effect at temperature 0"
    )
    group.add_argument(
        "--stop",
        type=readable,
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before the model writes this text; repeatable",
    )
    parser.add_argument(
        "--kv-cache",
        choices=CACHE_TYPES,
        default="float16",
        help="data type of the native engine's key-value cache (default: float16)",
    )
    parser.add_argument(
        "--speculate",
        type=positive_int,
        default=0,
        metavar="N",
        help="guess up to N tokens per step from the text so far, and let the model verify them: the same greedy text, "
        "faster if the text repeats itself",
    )
    add_engine_option(parser)


def open_for_generation(args: argparse.Namespace) -> Runner:
    """Open the model with the options of `add_generation_options`."""
    from zeropoint.runtime import open_runner

    return open_runner(
        args.artifact,
        threads=default_threads(args.threads),
        engine=args.engine,
        cache_type=args.kv_cache,
        draft_tokens=args.speculate,
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Return the sampling options of `add_generation_options`. Raises `UsageError` for a value out of range."""
    from zeropoint.runtime.sampling import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, args.seed)


def positive_int(text: str) -> int:
    """Parse an option's value: a whole number above zero."""
    value = int(text) if text.lstrip("-").isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return value


def default_threads(threads: int | None) -> int:
    """Return `threads`, or the number of usable cores if it is None."""
    from zeropoint.machine.detect import Machine

    return threads if threads is not None else Machine.detect().cores


def this_machine(*, measure: bool) -> Machine:
    """Return this machine. With `measure`, include the memory bandwidth (takes a second) if native kernels exist."""
    from zeropoint.kernels import library
    from zeropoint.machine.detect import Machine

    machine = Machine.detect()
    if not measure or library.missing() is not None:
        return machine
    return machine.with_bandwidth(library.read_bandwidth(threads=machine.cores))


def text_file(path: Path | None) -> str | None:
    """Return a text file's path as text, None for None. Raises `UsageError` if there is no such file."""
    if path is not None and not path.is_file():
        raise UsageError(f"there is no text file {path}")
    return None if path is None else str(path)


def write_json(path: Path | None, data: Mapping[str, Any]) -> None:
    """Write a result as JSON, unless `path` is None. Raises `UsageError` if it cannot be written."""
    write_text(path, atomic.dump_json(data))


def write_text(path: Path | None, text: str) -> None:
    """Write a result file, unless `path` is None. Raises `UsageError` if it cannot be written."""
    if path is not None:
        atomic.write_text(path, text)


def check_writable(*paths: Path | None) -> None:
    """Raise `UsageError` if a result file cannot be written. Commands call this before their long work."""
    for path in paths:
        if path is not None:
            atomic.refuse_unwritable(path)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """Yield a callback `(what, done, total)` that draws a bar on standard error, nothing outside a terminal."""
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    console = rich_console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: float, total: float) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update


@contextmanager
def progress_fraction() -> Iterator[Callable[[str, float], None]]:
    """Yield a callback `(what, fraction done)` that draws the bar of `progress_bar`."""
    with progress_bar() as bar:
        yield lambda what, fraction: bar(what, fraction, 1.0)


def show_report(report: Report) -> None:
    """Print a report's table: coloured and fitted to the width in a terminal, plain text otherwise."""
    from zeropoint.render import terminal
    from zeropoint.render.terminal import plain_text

    console = rich_console()
    if console.is_terminal:
        console.print(terminal(report))
    else:
        print(plain_text(report))
