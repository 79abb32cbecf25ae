"""Running models: `open_runner` loads a path and returns a `Runner` (`protocol.py`), whichever engine runs the model.

Each folder here is an engine, found by name. The interface of its module `engine.py` is `engine.Engine`: which models
the engine runs, how it opens them, how its memory and its kernels are measured. torch is imported only if the torch
runtime is asked for, or if no engine before it runs the model. CONTRIBUTING.md, "Add a runtime", has the whole list of
what a new engine needs.
"""

from __future__ import annotations

import logging
import pkgutil
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from zeropoint.errors import UnsupportedError, UsageError, ZeropointError
from zeropoint.machine.cores import default_threads
from zeropoint.runtime.engine import OpenOptions
from zeropoint.sources.location import locate

if TYPE_CHECKING:
    from zeropoint.runtime.engine import Engine, MemoryMeter
    from zeropoint.runtime.protocol import Runner

    #: `auto` (the first engine that runs the model), and the engines that can be asked for by name.
    ENGINES: tuple[str, ...]

__all__ = [
    "AUTO",
    "CACHE_TYPES",
    "DTYPES",
    "ENGINES",
    "engines",
    "fitting_engine",
    "open_runner",
    "prepare",
    "reference_engine",
]

logger = logging.getLogger(__name__)

AUTO = "auto"
DTYPES = ("auto", "float32", "bfloat16", "float16")
#: Types of the native engine's key-value cache.
CACHE_TYPES = ("float16", "int8", "float32")


def engines() -> list[Engine]:
    """Return the engines, the preferred ones first: the module `engine.py` of each folder in this package."""
    folders = [each.name for each in pkgutil.iter_modules(__path__) if each.ispkg]
    modules = [cast("Engine", import_module(f"{__name__}.{folder}.engine")) for folder in folders]
    return sorted(modules, key=lambda each: each.ORDER)


def __getattr__(name: str) -> Any:
    """Return `ENGINES`, which is known only after the engines' folders are read."""
    if name == "ENGINES":
        return (AUTO, *(each.NAME for each in engines() if not each.EXCLUSIVE))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def reference_engine() -> Engine:
    """Return the engine that runs the original checkpoint when artifacts are compared with it."""
    return next(each for each in engines() if each.REFERENCE)


def fitting_engine() -> Engine:
    """Return the engine that `fit` plans for: the preferred one whose kernels can be timed."""
    return next(each for each in engines() if each.timing() is not None)


def open_runner(
    path: str | Path,
    *,
    threads: int | None = None,
    dtype: str = "auto",
    engine: str = AUTO,
    cache_type: str = "float16",
    draft_tokens: int = 0,
    revision: str | None = None,
    theirs: bool = False,
) -> Runner:
    """Load an artifact, a Hugging Face checkpoint or another tool's model, and return a runner on this machine.

    `path` is a local path or the name of a model on the Hugging Face hub; `revision` is for hub names only. An ONNX
    folder or a folder that another tool quantized runs in its own runtime (`runtime.external`). A GGUF file runs on
    Zeropoint's engines, or in llama.cpp if `theirs` is set and llama.cpp is installed.

    `dtype` applies to checkpoints only: `auto` is the checkpoint's own dtype; any other value uses the torch runtime.
    With `engine="auto"`, a model that the native engine does not support runs on the torch runtime, and a warning says
    why. `cache_type` and `draft_tokens` (speculative decoding by prompt lookup) apply to the native engine only.

    Raises `UsageError` if the engine or dtype is unknown or does not suit the path, `UnsupportedError` if the engine
    that was asked for does not support the model, `ArtifactError` or `CheckpointError` if the files are damaged.
    """
    options = OpenOptions(engine, dtype, default_threads(threads), cache_type, draft_tokens, theirs)
    _check(options)
    path = locate(path, revision=revision)
    why = ""  # the preferred engine's reason
    *others, last = _candidates(path, options)
    for each in others:
        reason = each.refusal(path, options)
        if not reason:
            try:
                return _open(each, path, options, why)
            except UnsupportedError as cause:
                reason = str(cause)
        why = why or reason
    if reason := last.refusal(path, options):
        raise UnsupportedError(reason)
    return _open(last, path, options, why)


def prepare(path: str | Path, *, engine: str = AUTO, dtype: str = "auto") -> MemoryMeter:
    """Import the libraries of the engine that will run the model, load the tokenizer, and return the engine's meter.

    Memory that is measured later is then the model's alone. A model that does not load raises no error here:
    `open_runner` reports it.
    """
    options = OpenOptions(engine, dtype, theirs=True)
    everyone = engines()
    candidates: list[Engine] = []
    with suppress(ZeropointError, OSError):
        candidates = _candidates(Path(path), options)
    for each in candidates:
        with suppress(ZeropointError, OSError, ValueError):
            if not each.refusal(Path(path), options):
                each.prepare(Path(path), options)
                return each.memory()
    return (candidates or everyone)[-1].memory()


def _check(options: OpenOptions) -> None:
    """Raise `UsageError` if the engine or the dtype is unknown, or if the engine does not compute in the dtype."""
    named = {each.NAME: each for each in engines() if not each.EXCLUSIVE}
    if options.engine not in (AUTO, *named):
        raise UsageError(f"unknown engine {options.engine!r}: use {', '.join((AUTO, *named))}")
    if options.dtype not in DTYPES:
        raise UsageError(f"unknown dtype {options.dtype!r}: use {', '.join(DTYPES)}")
    if options.engine != AUTO and options.dtype not in named[options.engine].DTYPES:
        raise UsageError(f"the {options.engine} engine runs a model in its own types, not in {options.dtype}")


def _candidates(path: Path, options: OpenOptions) -> list[Engine]:
    """Return the engines to ask in turn: the one named, or for `auto` those that compute in the dtype.

    If an exclusive engine runs the model, return that engine alone, whatever the options say.
    """
    everyone = engines()
    for each in everyone:
        if each.EXCLUSIVE and not each.refusal(path, options):
            return [each]
    shared = [each for each in everyone if not each.EXCLUSIVE]
    if options.engine != AUTO:
        return [each for each in shared if options.engine == each.NAME]
    return [each for each in shared if options.dtype in each.DTYPES]


def _open(engine: Engine, path: Path, options: OpenOptions, why: str) -> Runner:
    """Open the model, after a warning if the preferred engine refused it; `why` is that engine's reason."""
    if why:
        logger.warning("%s runs %s: %s", path, engine.FALLBACK, why)
    runner = engine.open(path, options)
    if why:
        runner.engine_reason = why
    return runner
