"""Running models: the one way to get a `Runner` (`protocol.py`, what every engine offers) from a path.

Nothing is imported before it is needed: torch only when an engine that needs it is asked for, or when the native
one cannot.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.errors import UnsupportedError, UsageError, ZeropointError
from zeropoint.runtime import external
from zeropoint.sources.location import locate
from zeropoint.sources.texts import text_folder

if TYPE_CHECKING:
    from zeropoint.runtime.protocol import Runner

__all__ = ["CACHE_TYPES", "DTYPES", "ENGINES", "open_runner", "prepare"]

logger = logging.getLogger(__name__)

#: `auto`: native where it covers the model, universal (torch) where it does not.
ENGINES = ("auto", "native", "universal")
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: How the native engine keeps keys and values.
CACHE_TYPES = ("float16", "int8", "float32")


def open_runner(
    path: str | Path,
    *,
    threads: int = 2,
    dtype: str = "auto",
    engine: str = "auto",
    cache_type: str = "float16",
    draft_tokens: int = 0,
    revision: str | None = None,
    theirs: bool = False,
) -> Runner:
    """Load an artifact or a Hugging Face checkpoint for running on this CPU; another runtime's file (GGUF, ONNX, a
    folder that another tool quantized) in that runtime. `path` is local, or a hub name in that `revision`.

    A GGUF file runs on our engines, on the numbers that it holds; in llama.cpp with `theirs`, as it is measured beside
    ours, where llama.cpp is installed.

    `dtype` applies to checkpoints only: `float32` is the reference, `auto` the checkpoint's own; another than
    `auto` is torch's to compute. With `engine="auto"`, a model that the native engine does not cover runs on the
    universal one, and a logged sentence says why. `cache_type` and `draft_tokens` (speculation by prompt lookup, the
    same greedy text in fewer steps) are the native engine's. Raises `UsageError` for an unknown engine or dtype,
    `UnsupportedError` when the native engine is asked for by name and does not cover the model, and the
    checkpoint's or artifact's own errors.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}: use {', '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: use {', '.join(DTYPES)}")
    if dtype != "auto" and engine == "native":
        raise UsageError(f"the native engine runs a model in its own types, not in {dtype}")
    path = locate(path, revision=revision)
    other = _elsewhere(path, theirs=theirs)
    if other is not None:
        if engine != "auto":
            raise UsageError(
                f"{path} is run by {other.runtime}, not by the {engine} engine; "
                "`zeropoint import` makes an artifact of it, which is"
            )
        return other.open(threads=threads, dtype=dtype)
    why = ""
    if engine == "native" or (engine == "auto" and dtype == "auto"):
        from zeropoint.runtime.native.runner import NativeRunner

        try:
            return NativeRunner.open(path, threads=threads, cache_type=cache_type, draft_tokens=draft_tokens)
        except UnsupportedError as reason:
            if engine == "native":
                raise
            why = str(reason)
            logger.warning("%s runs in torch, slower and in more memory than natively: %s", path, why)
    from zeropoint.runtime.torch_engine.runner import TorchRunner

    runner = TorchRunner.open(str(path), threads=threads, dtype=dtype)
    runner.engine_reason = why
    return runner


def prepare(path: str | Path, *, engine: str = "auto", dtype: str = "auto") -> None:
    """Import an engine's libraries and load the folder's tokenizer, so that the memory `open_runner` then adds
    is the model's alone. A folder that does not load is left for `open_runner` to report."""
    if engine not in ENGINES:
        return
    other = _elsewhere(path, theirs=True)
    if other is not None:
        with suppress(ZeropointError, OSError):
            other.prepare()
        return
    if engine == "native" or (engine == "auto" and dtype == "auto"):
        from zeropoint import tokenizer
        from zeropoint.runtime.native import loading

        with suppress(ZeropointError, OSError):
            loading.check(Path(path))
            tokenizer.load_tokenizer(text_folder(Path(path)))
            return
    from zeropoint.runtime.torch_engine.runner import load_tokenizer

    with suppress(ZeropointError, OSError, ValueError):
        load_tokenizer(str(text_folder(Path(path))))


def _elsewhere(path: str | Path, *, theirs: bool) -> external.ExternalModel | None:
    """Return the other runtime that is to run a model; None where one of our engines does."""
    other = external.identify(path)
    if other is None or Path(path).suffix != ".gguf":
        return other
    return other if theirs and other.installed else None
