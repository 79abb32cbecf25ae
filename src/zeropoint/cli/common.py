"""Helpers that several commands share: common options, result files, progress bars."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.cli.console import readable, rich_console
from zeropoint.cli.option_values import (
    SEED,
    above_zero,
    at_least_zero,
    input_file,
    plain_file,
    probability,
    whole,
)
from zeropoint.errors import UsageError, ZeropointError
from zeropoint.files import atomic
from zeropoint.machine.cores import default_threads
from zeropoint.progress import Progress

if TYPE_CHECKING:
    from zeropoint.machine.detect import Machine
    from zeropoint.runtime.protocol import Runner
    from zeropoint.runtime.sampling import Sampling
    from zeropoint.values.report import Report

#: A parser, or a group of options in one.
Options = argparse._ActionsContainer

DEFAULT_TEXT_TOKENS = 8192


def add_json_option(parser: Options) -> None:
    """Add --json."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the result as JSON")


def add_revision_option(parser: Options, model: str = "MODEL") -> None:
    """Add --revision; `model` is the argument that it is about."""
    parser.add_argument(
        "--revision", metavar="REV", help=f"branch, tag or commit, if {model} is the name of a hub model"
    )


def add_strict_option(parser: Options, when: str = "a weight was not quantized as planned") -> None:
    """Add --strict: exit with 1 `when`."""
    parser.add_argument("--strict", action="store_true", help=f"exit with 1 if {when}")


def strict_code(args: argparse.Namespace, warnings: Sequence[str]) -> int:
    """Return the exit code: 1 with --strict if there are warnings, of which the first is printed, else 0."""
    if not args.strict or not warnings:
        return 0
    print(f"strict: {len(warnings)} warnings, the first: {warnings[0]}")
    return 1


def add_threads_option(parser: Options) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads",
        type=whole(1, 4),
        default=None,
        metavar="N",
        help="CPU threads (default: the usable cores)",
    )


def add_text_options(parser: Options) -> None:
    """Add --text and --tokens, the evaluation text."""
    parser.add_argument(
        "--text",
        type=plain_file,
        metavar="FILE",
        help="UTF-8 evaluation text, documents separated by two blank lines (default: prose shipped with Python)",
    )
    parser.add_argument(
        "--tokens",
        type=whole(1, DEFAULT_TEXT_TOKENS),
        default=DEFAULT_TEXT_TOKENS,
        metavar="N",
        help=f"tokens of the evaluation text (default: {DEFAULT_TEXT_TOKENS})",
    )


def add_stream_option(parser: Options) -> None:
    """Add --stream and --no-stream."""
    parser.add_argument(
        "--stream",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="run the float32 original model block by block, with one block in memory (default: if the model does "
        "not fit into the free memory); an interrupted run continues where it was",
    )


def add_calibration_options(
    parser: Options, text: str, *, of: Callable[[str], str] = input_file, when: str = ""
) -> None:
    """Add --calibration, whose help is `text`, and --calibration-tokens; `of` parses the file's name.

    `when` starts both help texts if the options apply only then ("with --type: ").
    """
    parser.add_argument("--calibration", type=of, metavar="FILE", help=f"{when}{text}")
    parser.add_argument(
        "--calibration-tokens",
        type=whole(1, 65536),
        metavar="N",
        help=f"{when}tokens of the calibration text to read (default: 65536)",
    )


def add_engine_option(parser: Options) -> None:
    """Add --engine."""
    from zeropoint.runtime import AUTO, ENGINES, engines

    named = ", ".join(f"{each.NAME} ({each.SUMMARY})" for each in engines() if each.NAME in ENGINES)
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=AUTO,
        help=f"what runs the model: {named}, or {AUTO} (default): the first of them that supports the model",
    )


def add_speed_options(parser: Options, *, repeats: int) -> None:
    """Add the options of speed measurements; `repeats` is the default number of timings."""
    parser.add_argument(
        "--prompt-tokens",
        type=whole(1, 512),
        default=512,
        metavar="N",
        help="tokens of the prompt that prefill is timed on (default: 512)",
    )
    parser.add_argument(
        "--new-tokens",
        type=whole(1, 128),
        default=128,
        metavar="N",
        help="tokens to generate that decode is timed on (default: 128)",
    )
    parser.add_argument(
        "--repeats",
        type=whole(3, repeats),
        default=repeats,
        metavar="N",
        help=f"timings of each kind, at least 3; median and spread are shown (default: {repeats})",
    )


def add_kv_cache_option(parser: Options) -> None:
    """Add --kv-cache."""
    from zeropoint.runtime import CACHE_TYPES

    parser.add_argument(
        "--kv-cache",
        choices=CACHE_TYPES,
        default="float16",
        help="data type of the native engine's key-value cache (default: float16)",
    )


def add_generation_options(parser: Options) -> None:
    """Add the options of sampling, key-value cache, speculation, engine and revision."""
    group = parser.add_argument_group("choosing tokens")
    group.add_argument(
        "--temperature",
        type=at_least_zero("0.7"),
        default=0.0,
        metavar="T",
        help="sampling temperature; 0 (default) is greedy",
    )
    group.add_argument(
        "--top-k",
        type=whole(0, 40),
        default=0,
        metavar="K",
        help="sample from the K most likely tokens (default: from all)",
    )
    group.add_argument(
        "--top-p",
        type=probability("0.9", zero=False),
        default=1.0,
        metavar="P",
        help="sample from the most likely tokens whose probabilities add up to P (default: 1)",
    )
    group.add_argument(
        "--min-p",
        type=probability("0.05", zero=True),
        default=0.0,
        metavar="P",
        help="sample from tokens at least P times as likely as the most likely token (default: 0)",
    )
    group.add_argument(
        "--repetition-penalty",
        type=above_zero("a number", "1.1"),
        default=1.0,
        metavar="R",
        help="above 1, tokens of the text so far become less likely (default: 1)",
    )
    group.add_argument(
        "--seed", type=SEED, default=0, metavar="N", help="seed of the sampling; no effect at temperature 0"
    )
    group.add_argument(
        "--stop",
        type=readable,
        action="append",
        default=[],
        metavar="TEXT",
        help="stop before the model writes this text; repeatable",
    )
    add_kv_cache_option(parser)
    parser.add_argument(
        "--speculate",
        type=whole(1, 8),
        default=0,
        metavar="N",
        help="guess up to N tokens per step from the text so far, and let the model verify them: the same greedy text, "
        "faster if the text repeats itself",
    )
    add_engine_option(parser)
    add_revision_option(parser, "ARTIFACT")


def refuse_tiny_memory(model: str) -> None:
    """Raise `UsageError`, before torch is imported, if not even rounding a local model to nearest fits into memory."""
    from zeropoint.predictions import Observed, Sizes, quantizing, refuse_large
    from zeropoint.sources import open_source

    if not Path(model).exists():
        return  # a hub name, or an error that `open_checkpoint` reports
    try:
        sizes = Sizes.of(open_source(model))
    except (ZeropointError, OSError):
        return
    advice = "use a machine with more memory"
    refuse_large(f"quantizing {model}", quantizing(sizes, Observed(0), 0), advice)


def open_for_generation(args: argparse.Namespace) -> Runner:
    """Open the model with the options of `add_generation_options`."""
    from zeropoint.predictions import refuse_large, running, stored_bytes
    from zeropoint.runtime import open_runner

    need = running(stored_bytes(args.artifact))
    refuse_large(f"running {args.artifact}", need, "quantize the model to fewer bits (--format int4)")
    return open_runner(
        args.artifact,
        threads=default_threads(args.threads),
        engine=args.engine,
        revision=args.revision,
        cache_type=args.kv_cache,
        draft_tokens=args.speculate,
    )


def sampling_of(args: argparse.Namespace) -> Sampling:
    """Return the sampling options of `add_generation_options`. Raises `UsageError` for a value out of range."""
    from zeropoint.runtime.sampling import Sampling

    return Sampling(args.temperature, args.top_k, args.top_p, args.min_p, args.repetition_penalty, args.seed)


def refuse_ignored(args: argparse.Namespace, where: str, **defaults: Any) -> None:
    """Raise `UsageError` for options that have no effect `where` ("without --check") and are not at their defaults.

    `defaults` maps the names of such options, as in `args`, to their defaults.
    """
    names = [
        f"--{name.replace('_', '-')}" for name, default in defaults.items() if getattr(args, name) != default
    ]
    if names:
        verb = "has" if len(names) == 1 else "have"
        raise UsageError(f"{', '.join(names)} {verb} no effect {where}: leave it out, or see --help")


def this_machine(*, measure: bool) -> Machine:
    """Return this machine. With `measure`, include the memory bandwidth (takes a second) if native kernels exist."""
    from zeropoint.kernels import library
    from zeropoint.machine.detect import Machine

    machine = Machine.detect()
    if not measure or library.missing() is not None:
        return machine
    return machine.with_bandwidth(library.read_bandwidth(threads=machine.cores))


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
    """Yield a callback that draws a bar on standard error, nothing outside a terminal."""
    from rich.progress import (
        BarColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    console = rich_console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    # A step of a large model takes a minute, so the pace is that of the last ten.
    with Bar(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        speed_estimate_period=600,
    ) as bar:
        task = bar.add_task("", total=None)

        def update(what: str, done: float, total: float = 1.0) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield update


def show_report(report: Report) -> None:
    """Print a report's table: coloured and fitted to the width in a terminal, plain text otherwise."""
    from zeropoint.render import terminal
    from zeropoint.render.terminal import plain_text

    console = rich_console()
    if console.is_terminal:
        console.print(terminal(report))
    else:
        print(plain_text(report))
