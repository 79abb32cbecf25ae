"""All external runtimes as one engine, as `zeropoint.runtime.engine.Engine` describes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.errors import UsageError
from zeropoint.runtime import external

if TYPE_CHECKING:
    from zeropoint.runtime.engine import MemoryMeter, OpenOptions
    from zeropoint.runtime.protocol import Runner

NAME, ORDER, EXCLUSIVE, REFERENCE = "external", 0, True, False
DTYPES = ("auto", "float32", "bfloat16", "float16")
SUMMARY = "another program, for its own files"
FALLBACK = "in another program"
LABELS: dict[str, str] = {}  # reports call the runtimes by their own names


def refusal(path: Path, options: OpenOptions) -> str:
    """Return why none of the external runtimes runs the model, "" if one does.

    Zeropoint's own engines run GGUF files too: llama.cpp gets them with `options.theirs`, if it is installed.
    """
    other = external.identify(path)
    if other is None:
        return f"{path} is not a model in another runtime's format"
    if path.suffix != ".gguf" or (options.theirs and other.installed):
        return ""
    return f"{path} is run by Zeropoint's engines"


def prepare(path: Path, options: OpenOptions) -> None:
    """Import the runtime."""
    if (other := external.identify(path)) is not None:
        other.prepare()


def open(path: Path, options: OpenOptions) -> Runner:
    """Load the model in its runtime. Raises `UsageError` if the user asked for one of Zeropoint's engines."""
    other = external.identify(path)
    assert other is not None  # `refusal` was asked
    if options.engine != "auto":
        raise UsageError(
            f"{path} is run by {other.runtime}, not by the {options.engine} engine; "
            f"`zeropoint import` converts it to an artifact, which the {options.engine} engine runs"
        )
    return other.open(threads=options.threads, dtype=options.dtype)


def memory() -> MemoryMeter:
    """Return the memory of this process."""
    from zeropoint.runtime import host_memory

    return host_memory


def timing() -> None:
    """Return None: `fit` plans for the native engine."""
