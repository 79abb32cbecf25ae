"""The native engine, as `zeropoint.runtime.engine.Engine` describes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.errors import UnsupportedError, ZeropointError

if TYPE_CHECKING:
    from zeropoint.runtime.engine import MemoryMeter, OpenOptions, Timing
    from zeropoint.runtime.native.runner import NativeRunner

NAME, ORDER, EXCLUSIVE, REFERENCE = "native", 10, False, False
DTYPES = ("auto",)
SUMMARY = "C++, no torch"
FALLBACK = "natively"
LABELS = {NAME: "the native engine"}


def refusal(path: Path, options: OpenOptions) -> str:
    """Return why the engine does not support the model of this config.json, "" if it does or there is no config."""
    from zeropoint.runtime.native import loading

    try:
        loading.check(path.expanduser())
    except UnsupportedError as reason:
        return str(reason)
    except (ZeropointError, OSError):
        return ""
    return ""


def prepare(path: Path, options: OpenOptions) -> None:
    """Load the library and the tokenizer."""
    from zeropoint import tokenizer
    from zeropoint.runtime.native import library
    from zeropoint.sources.texts import text_folder

    library.load()
    tokenizer.load_tokenizer(text_folder(path))


def open(path: Path, options: OpenOptions) -> NativeRunner:
    """Load the model; the packed file of an artifact is written if the user's cache has none."""
    from zeropoint.runtime.native.runner import NativeRunner

    return NativeRunner.open(
        path, threads=options.threads, cache_type=options.cache_type, draft_tokens=options.draft_tokens
    )


def memory() -> MemoryMeter:
    """Return the memory of this process."""
    from zeropoint.runtime import host_memory

    return host_memory


def timing() -> Timing:
    """Return the timing of the C++ kernels."""
    from zeropoint.runtime.native import timing

    return timing
