"""Running models: `open_runner` loads a path and returns a `Runner` (`protocol.py`), whichever engine runs the model.

torch is imported only if the torch runtime is asked for, or if the native engine does not support the model.

A new engine, for a GPU with CUDA say, implements `protocol.Runner` (not `model.py`, which wraps any runner for
`zeropoint.load`) and enters `ENGINES`, `open_runner` and `prepare` here. CONTRIBUTING.md, "Add a runtime", has the
whole list. All of today's engines run on the CPU.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.errors import UnsupportedError, UsageError, ZeropointError
from zeropoint.machine.cores import default_threads
from zeropoint.runtime import external
from zeropoint.sources.location import locate
from zeropoint.sources.texts import text_folder

if TYPE_CHECKING:
    from zeropoint.runtime.protocol import Runner

__all__ = ["CACHE_TYPES", "DTYPES", "ENGINES", "open_runner", "prepare"]

logger = logging.getLogger(__name__)

#: `auto`: the native engine if it supports the model, otherwise `universal` (the torch runtime).
ENGINES = ("auto", "native", "universal")
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: Types of the native engine's key-value cache.
CACHE_TYPES = ("float16", "int8", "float32")


def open_runner(
    path: str | Path,
    *,
    threads: int | None = None,
    dtype: str = "auto",
    engine: str = "auto",
    cache_type: str = "float16",
    draft_tokens: int = 0,
    revision: str | None = None,
    theirs: bool = False,
) -> Runner:
    """Load an artifact, a Hugging Face checkpoint or another tool's model, and return a runner on this CPU.

    `path` is a local path or a Hugging Face hub name, then with an optional `revision`. An ONNX folder or a folder that
    another tool quantized runs in its own runtime (`runtime.external`). A GGUF file runs on Zeropoint's engines, or in
    llama.cpp if `theirs` is set and llama.cpp is installed.

    `dtype` applies to checkpoints only: `auto` is the checkpoint's own dtype; any other value uses the torch runtime.
    With `engine="auto"`, a model that the native engine does not support runs on the torch runtime, and a warning says
    why. `cache_type` and `draft_tokens` (speculative decoding by prompt lookup) apply to the native engine only.

    Raises `UsageError` if the engine or dtype is unknown or does not suit the path, `UnsupportedError` if
    `engine="native"` does not support the model, `ArtifactError` or `CheckpointError` if the files are damaged.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}: use {', '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: use {', '.join(DTYPES)}")
    threads = default_threads(threads)
    if dtype != "auto" and engine == "native":
        raise UsageError(f"the native engine runs a model in its own types, not in {dtype}")
    path = locate(path, revision=revision)
    other = _elsewhere(path, theirs=theirs)
    if other is not None:
        if engine != "auto":
            raise UsageError(
                f"{path} is run by {other.runtime}, not by the {engine} engine; "
                f"`zeropoint import` converts it to an artifact, which the {engine} engine runs"
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
    """Import an engine's libraries and load the model's tokenizer, to measure the memory of the model alone later.

    A model that does not load raises no error here: `open_runner` reports it.
    """
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
    from zeropoint.checkpoint.tokenizer import load_tokenizer

    with suppress(ZeropointError, OSError, ValueError):
        load_tokenizer(str(text_folder(Path(path))))


def _elsewhere(path: str | Path, *, theirs: bool) -> external.ExternalModel | None:
    """Return the external model if another runtime runs `path`; None if one of Zeropoint's engines does."""
    other = external.identify(path)
    if other is None or Path(path).suffix != ".gguf":
        return other
    return other if theirs and other.installed else None
