"""What each group costs of a decoded token in each format, measured here.

Each product is timed alone, with the weights read in the order of a token, so that they come from where decoding
finds them. What decoding adds to its products (attention, norms, the steps between) is in the time of whole tokens,
measured with the model in one format; it is shared out over the groups in proportion, so that predictions are exact
for uniform models and between them follow the products.
"""

from __future__ import annotations

import statistics
import time

import numpy as np
from numpy.typing import NDArray

from zeropoint.fitting.candidates import Candidates, Step
from zeropoint.kernels import library
from zeropoint.runtime.native.library import Decoder, Weight
from zeropoint.runtime.native.session import read

#: As `zeropoint bench` measures: after a prompt, over some steps.
PROMPT, STEPS, ROUNDS = 512, 26, 5


def decode_seconds(candidates: Candidates, *, threads: int, step: Step) -> NDArray[np.float64]:
    """Seconds of a token `[groups, formats]`; columns sum up to the uniform model's time."""
    groups, formats = len(candidates.groups), len(candidates.formats)
    seconds = np.empty((groups, formats))
    whole: list[list[float]] = [[] for _ in range(formats)]
    for turn in range(ROUNDS):  # in turns, so that a slow second on a shared machine hurts all alike
        for column in range(formats):
            step("timing decode steps", (turn + column / formats) / ROUNDS)
            decoder = candidates.decoder(np.full(groups, column))
            whole[column] += token_seconds(decoder, threads=threads)
    for column, format in enumerate(candidates.formats):
        products = _products(candidates, format, threads)
        seconds[:, column] = products * (statistics.median(whole[column]) / products.sum())
    return seconds


def token_seconds(decoder: Decoder, *, threads: int) -> list[float]:
    """The times of decoding one token after another, after a prompt."""
    config = decoder.record.config
    prompt = max(1, min(PROMPT, config.max_positions - STEPS - 1))
    cache = decoder.cache(prompt + STEPS)
    ids = (np.arange(prompt) * 7919 % config.vocab).astype(np.int32)
    logits = np.empty((1, config.vocab), np.float32)
    times = []
    read(decoder, cache, ids, threads=threads, out=logits)
    for position in range(prompt, prompt + STEPS):
        start = time.perf_counter()
        token = logits.argmax(-1).astype(np.int32)
        positions = np.full(1, position, np.int32)
        decoder.forward(cache, token, np.zeros(1, np.int32), positions, threads=threads, out=logits)
        times.append(time.perf_counter() - start)
    return times[2:]


def _products(candidates: Candidates, format: str, threads: int) -> NDArray[np.float64]:
    """Seconds of each group's products `[groups]`: the median of a few passes over all of them."""
    weights = [candidates.weights(group, format) for group in candidates.groups]
    widest = max(max(w.format.rows, w.format.columns) for parts in weights for w in parts)
    x, y = np.ones(widest, np.float32), np.empty(widest, np.float32)
    passes = np.array([[_time(parts, x, y, threads) for parts in weights] for _ in range(ROUNDS + 1)])
    return np.asarray(np.median(passes[1:], axis=0))


def _time(parts: list[Weight], x: NDArray[np.float32], y: NDArray[np.float32], threads: int) -> float:
    start = time.perf_counter()
    for weight in parts:
        rows, columns = weight.format.rows, weight.format.columns
        status = library.load().zp_linear(
            weight.address, x.ctypes.data, 1, columns, None, y.ctypes.data, rows, threads
        )
        library.check(status)
    return time.perf_counter() - start
