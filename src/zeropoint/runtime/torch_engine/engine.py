"""The torch runtime (engine `universal`), as `zeropoint.runtime.engine.Engine` describes it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zeropoint.runtime.engine import MemoryMeter, OpenOptions
    from zeropoint.runtime.torch_engine.runner import TorchRunner

NAME, ORDER, EXCLUSIVE, REFERENCE = "universal", 20, False, True
DTYPES = ("auto", "float32", "bfloat16", "float16")
SUMMARY = "torch"
FALLBACK = "in torch, slower and in more memory than natively"
LABELS = {NAME: "the universal engine (torch)", "transformers": "transformers (torch)"}


def refusal(path: Path, options: OpenOptions) -> str:
    """Return "": transformers says in `open` which models it does not know."""
    return ""


def prepare(path: Path, options: OpenOptions) -> None:
    """Import torch and transformers, and load the tokenizer."""
    import zeropoint.runtime.torch_engine.runner  # noqa: F401
    from zeropoint.checkpoint.tokenizer import load_tokenizer
    from zeropoint.sources.texts import text_folder

    load_tokenizer(str(text_folder(path)))


def open(path: Path, options: OpenOptions) -> TorchRunner:
    """Load an artifact, or a checkpoint in `options.dtype`."""
    from zeropoint.runtime.torch_engine.runner import TorchRunner

    return TorchRunner.open(str(path), threads=options.threads, dtype=options.dtype)


def memory() -> MemoryMeter:
    """Return the memory of this process."""
    from zeropoint.runtime import host_memory

    return host_memory


def timing() -> None:
    """Return None: `fit` packs and times weights for the native engine."""
