"""Running models: the `Runner` that every engine offers, and the one way to get one from a path.

`open_runner` imports torch only when an engine that needs it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]

ENGINES = ("universal",)
DTYPES = ("auto", "float32", "bfloat16", "float16")


class Runner(Protocol):
    """A loaded model that can be measured: logits, greedy text, and timed prefill and decode."""

    name: str
    engine: str
    vocab_size: int
    weights_bytes: int
    """Bytes the weights hold in memory now, packed for the kernels."""
    artifact_bytes: int
    """Bytes of the tensors on disk."""

    stop_tokens: frozenset[int]
    """End-of-sequence ids of the model."""

    def logits(self, tokens: Tokens) -> Logits:
        """float32 `[T, vocab]` for `[T]` tokens, `[B, T, vocab]` for `[B, T]`."""
        ...

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: Callable[[int], None] | None = None,
        stop: Container[int] = (),
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[int]:
        """Continuation with a key-value cache: the new tokens only, a stop token included. Greedy at
        temperature 0; above it, sampled from the tempered distribution with a generator of `seed`."""
        ...

    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        """Seconds to prefill `[B, T]` tokens, and seconds of `new_tokens` greedy decode steps after it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens added."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens kept."""
        ...

    def chat_prompt(self, user_text: str) -> list[int]:
        """Token ids of one user turn in the model's chat template, or of the bare text without one."""
        ...


def open_runner(
    path: str | Path, *, threads: int = 2, dtype: str = "auto", engine: str = "universal"
) -> Runner:
    """Load an artifact or a Hugging Face checkpoint folder for running on this CPU.

    `dtype` applies to checkpoints only: `float32` is the reference, `auto` the checkpoint's own.
    Raises `UsageError` for an unknown engine or dtype, and the checkpoint's or artifact's own errors.
    """
    if engine not in ENGINES:
        raise UsageError(f"unknown engine {engine!r}: use {' or '.join(ENGINES)}")
    if dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}: use {', '.join(DTYPES)}")
    from zeropoint.runtime.universal.runner import TorchRunner

    return TorchRunner.open(str(path), threads=threads, dtype=dtype)


def prepare(path: str | Path, *, engine: str = "universal") -> None:
    """Import an engine's libraries and load the folder's tokenizer, so that the memory `open_runner` then adds
    is the model's alone. A tokenizer that does not load is left for `open_runner` to report."""
    if engine != "universal":
        return
    from zeropoint.runtime.universal.runner import load_tokenizer

    with suppress(OSError, ValueError):
        load_tokenizer(str(path))
