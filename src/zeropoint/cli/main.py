"""The `zeropoint` program: finds the commands, parses, and turns errors into one sentence each.

Exit codes: 0 done, 1 the gate, the budget or --strict failed, 2 bad use or bad input, 130 interrupted.
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

import zeropoint
from zeropoint.cli import commands
from zeropoint.cli.console import streams
from zeropoint.errors import ZeropointError

#: The order of the help text: from looking, to making, to measuring, to using.
ORDER = (
    "doctor",
    "inspect",
    "quantize",
    "fit",
    "check",
    "compare",
    "bench",
    "generate",
    "chat",
    "export",
    "import",
)

#: What the small install leaves out, and the extra that brings it.
EXTRAS = {
    "torch": "quantize",
    "transformers": "quantize",
    "accelerate": "quantize",
    "gguf": "export",
    "onnx": "export",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="zeropoint",
        description="Fit any LLM to the machine you have, and prove that it still works.",
        epilog="exit codes: 0 done, 1 the quality gate or --strict failed, 2 bad use or bad input, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=f"zeropoint {zeropoint.__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    found = {info.name for info in pkgutil.iter_modules(commands.__path__)}
    for name in sorted(found, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER)):
        module = import_module(f"zeropoint.cli.commands.{name}")
        sub = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program with these arguments (default: those of the process) and return its exit code."""
    with streams():
        return _main(argv)


def _main(argv: Sequence[str] | None) -> int:
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # A library's own bars and advice would mix with ours; errors reach the user through ours.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # A terminated process must clean up its half-written artifact as an interrupted one does.
    signal.signal(signal.SIGTERM, _terminate)
    args = build_parser().parse_args(argv)
    try:
        code = int(args.run(args))
        sys.stdout.flush()
        return code
    except ZeropointError as error:
        return _fail(error, error.exit_code, args.debug)
    except ModuleNotFoundError as error:
        extra = EXTRAS.get(error.name or "")
        if extra is None:
            raise
        need = f"this command needs {error.name}: pip install 'zeropoint[{extra}]'"
        return _fail(error, 2, args.debug, need)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: no half-written artifact was left behind\n")
        return 130
    except MemoryError as error:
        return _fail(
            error,
            2,
            args.debug,
            "not enough memory: close other programs, or use a smaller model or fewer tokens",
        )
    except OSError as error:
        if error.errno == errno.ENOSPC:
            where = f" for {error.filename}" if error.filename else ""
            return _fail(
                error, 2, args.debug, f"no space left on the disk{where}: free some, or write elsewhere"
            )
        return _fail(error, 2, args.debug)


def _terminate(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _fail(error: BaseException, code: int, debug: bool, message: str | None = None) -> int:
    if debug:
        raise error
    text = " ".join((message or str(error)).split())
    sys.stderr.write(f"error: {text}\n")
    return code
