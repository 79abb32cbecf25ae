"""`CachedRunner`: the `Runner` protocol over any engine with a key-value cache (`start`, then `feed`)."""

from __future__ import annotations

import time
from collections.abc import Container, Sequence
from typing import Protocol

import numpy as np

from zeropoint.runtime.generation import OnToken, generate
from zeropoint.runtime.sampling import Sampling
from zeropoint.runtime.text import Reads
from zeropoint.tokenizer import Text
from zeropoint.values.arrays import Logits, Tokens


class Engine(Protocol):
    """A model with a key-value cache."""

    vocab_size: int

    def start(self, sequences: int, length: int) -> None:
        """Empty the cache and make room for `sequences` sequences of up to `length` tokens."""
        ...

    def feed(self, tokens: Tokens, *, last: bool) -> Logits:
        """Read tokens `[B, T]`, the next T of each sequence; return float32 logits `[B, T, vocab]`.

        With `last`, return only the logits after the last token of each sequence, `[B, 1, vocab]`.
        """
        ...


class CachedRunner(Reads):
    """The `zeropoint.runtime.protocol.Runner` of an `Engine`. `weights_bytes`: 0 if the runtime does not report it."""

    def __init__(
        self,
        engine: Engine,
        text: Text,
        *,
        name: str,
        runtime: str,
        artifact_bytes: int,
        weights_bytes: int = 0,
    ) -> None:
        self.name = name
        self.engine, self.engine_reason = runtime, ""
        self.vocab_size = engine.vocab_size
        self.weights_bytes = weights_bytes
        self.artifact_bytes = artifact_bytes
        self.stop_tokens = text.stop_tokens()
        self._engine = engine
        self.tokenizer = text

    def logits(self, tokens: Tokens) -> Logits:
        rows = np.atleast_2d(np.asarray(tokens, np.int64))
        out = np.empty((*rows.shape, self.vocab_size), np.float32)
        for row, each in zip(rows, out, strict=True):
            self._engine.start(1, row.size)
            each[:] = self._engine.feed(row[None], last=False)[0]
        return out[0] if np.ndim(tokens) == 1 else out

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: OnToken | None = None,
        stop: Container[int] = (),
        sampling: Sampling | None = None,
    ) -> list[int]:
        self._engine.start(1, len(tokens) + max_new_tokens)
        return generate(
            lambda fed: self._engine.feed(np.array([fed], np.int64), last=True)[0, 0],
            tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            stop=stop,
            on_token=on_token,
        )

    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        step = np.atleast_2d(np.asarray(tokens, np.int64))
        self._engine.start(step.shape[0], step.shape[1] + new_tokens)
        start = time.perf_counter()
        logits = self._engine.feed(step, last=True)
        prefilled = time.perf_counter()
        for _ in range(new_tokens):
            logits = self._engine.feed(logits[:, 0].argmax(-1, keepdims=True), last=True)
        return prefilled - start, time.perf_counter() - prefilled
