"""Timing of the C++ decoder and of single products, for `fit` (the interface is `zeropoint.runtime.engine.Timing`) and
for `format_speeds.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.runtime.native.library import Decoder, Weight
from zeropoint.runtime.native.session import read


def token_seconds(decoder: Decoder, *, prompt: int, steps: int, threads: int) -> tuple[float, float]:
    """Return the seconds per token of prefill, and of greedy decode after the prompt.

    `prompt` and `steps` are reduced to the model's context.
    """
    config = decoder.record.config
    steps = max(1, min(steps, config.max_positions // 2))
    prompt = max(1, min(prompt, config.max_positions - steps))
    cache = decoder.cache(prompt + steps)
    ids = (np.arange(prompt) * 7919 % config.vocab).astype(np.int32)
    logits = np.empty((1, config.vocab), np.float32)
    start = time.perf_counter()
    read(decoder, cache, ids, threads=threads, out=logits)
    prefilled = time.perf_counter()
    for position in range(prompt, prompt + steps):
        token = logits.argmax(-1).astype(np.int32)
        positions = np.full(1, position, np.int32)
        decoder.forward(cache, token, np.zeros(1, np.int32), positions, threads=threads, out=logits)
    return (prefilled - start) / prompt, (time.perf_counter() - prefilled) / steps


def product_seconds(
    groups: Sequence[tuple[Sequence[Weight], int]], *, passes: int, threads: int
) -> NDArray[np.float64]:
    """Return the seconds of each group `(weights, input rows)`, float64 `[passes, groups]`.

    A group's seconds are those of the products with its weights, one after the other. Every pass times all groups.
    """
    most_rows = max(rows for _, rows in groups)
    formats = [w.format for weights, _ in groups for w in weights]
    # Random inputs, as a kernel may be faster on inputs that no model has, such as equal numbers.
    x = np.random.default_rng(0).standard_normal((most_rows, max(f.columns for f in formats)), np.float32)
    y = np.empty((most_rows, max(f.rows for f in formats)), np.float32)
    return np.array(
        [
            [_product_seconds(weights, x, y, count, threads) for weights, count in groups]
            for _ in range(passes)
        ]
    )


def _product_seconds(
    weights: Sequence[Weight], x: NDArray[np.float32], y: NDArray[np.float32], count: int, threads: int
) -> float:
    """Return the seconds of multiplying `count` rows of `x` by each weight."""
    start = time.perf_counter()
    for weight in weights:
        rows, columns = weight.format.rows, weight.format.columns
        status = library.load().zp_linear(
            weight.address, x.ctypes.data, count, columns, None, y.ctypes.data, rows, threads
        )
        library.check(status)
    return time.perf_counter() - start
