"""The `zeropoint` program: parses the command line, runs the command, and prints each error as one sentence.

Exit codes: 0 done; 1 the quality gate, the budget or --strict failed, or `plan diff` found differences; 2 wrong usage
or bad input; 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import pkgutil
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

import zeropoint
from zeropoint.cli import commands
from zeropoint.cli.console import streams
from zeropoint.errors import OUT_OF_MEMORY, UsageError, ZeropointError, is_out_of_memory, reason

#: The order of the commands in the help text; commands that are not listed come last.
ORDER = (
    "doctor",
    "inspect",
    "quantize",
    "fit",
    "check",
    "train",
    "compare",
    "bench",
    "generate",
    "chat",
    "serve",
    "export",
    "pack",
    "import",
)

#: Optional dependency -> the extra of this package that installs the dependency.
EXTRAS = {
    "torch": "quantize",
    "transformers": "quantize",
    "scipy": "quantize",
    "gguf": "export",
    "onnx": "export",
    "starlette": "serve",
    "uvicorn": "serve",
    "prometheus_client": "serve",
    "llguidance": "serve",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are `UsageError`s of one sentence, without the list of all options."""

    def error(self, message: str) -> NoReturn:
        """Raise `UsageError` with argparse's message."""
        raise UsageError(f"{message.removeprefix('argument ')} (`{self.prog} --help` lists the options)")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; it imports every command module."""
    parser = Parser(
        prog="zeropoint",
        description="Fit any LLM to the machine you have, and prove that it still works.",
        epilog="exit codes: 0 done; 1 the quality gate, the budget or --strict failed, or plans differ; 2 wrong usage "
        "or bad input; 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"zeropoint {zeropoint.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    names = {info.name for info in pkgutil.iter_modules(commands.__path__)}
    for name in sorted(names, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER)):
        module = import_module(f"zeropoint.cli.commands.{name}")
        sub = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run, interrupted=getattr(module, "INTERRUPTED", "interrupted"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code. `argv` defaults to the process's arguments."""
    with streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    """Do what `main` does, with the standard streams already replaced."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Progress bars and advice of libraries would mix with the program's own output; library errors are still shown.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # SIGTERM must remove a half-written artifact like Ctrl-C does.
    signal.signal(signal.SIGTERM, _terminate)
    args = argparse.Namespace(debug=False, interrupted="interrupted")
    try:
        build_parser().parse_args(argv, args)
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except ZeropointError as error:
        return _fail(
            error, error.exit_code, args.debug, OUT_OF_MEMORY if is_out_of_memory(error.__cause__) else None
        )
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        need = f"this command needs {error.name}: pip install 'zeropoint[{extra}]'"
        return _fail(error, 2, args.debug, need)
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{args.interrupted}\n")
        return 130
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(error, 2, args.debug, OUT_OF_MEMORY)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = f" for {error.filename}" if error.filename else ""
            return _fail(
                error, 2, args.debug, f"no space left on the disk{where}: free some, or write elsewhere"
            )
        where = f"{error.filename}: " if error.filename else ""
        return _fail(error, 2, args.debug, where + reason(error))


def _terminate(signum: int, frame: FrameType | None) -> None:
    """Raise `KeyboardInterrupt`, as Ctrl-C does."""
    raise KeyboardInterrupt


def _fail(error: BaseException, code: int, debug: bool, message: str | None = None) -> int:
    """Print the error as one sentence and return the exit code; with `debug`, raise the error instead."""
    if debug:
        raise error
    text = " ".join((message or str(error)).split())
    sys.stderr.write(f"error: {text}\n")
    return code
