"""Timing: the seconds per token of each group in each format, for decode and for prefill, measured on this machine.

Each group's matrix products are timed alone, group after group as in the forward pass, so that weights come from the
same cache or memory as in decode. Whole models in one format are timed too. Their extra time (attention, norms, thread
synchronisation) is shared out over the groups in proportion to the products, so predictions are exact for uniform
models.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.fitting.candidates import Candidates, Group
from zeropoint.kernels import library
from zeropoint.planning.solver import Picks
from zeropoint.progress import Progress
from zeropoint.runtime.native.library import Decoder, Weight
from zeropoint.runtime.native.session import read
from zeropoint.values.arrays import Doubles

#: Prompt tokens, decode steps and rounds of one timing. Prompt and steps are those of `zeropoint bench`.
PROMPT, STEPS, ROUNDS = 512, 128, 4
#: Input rows (tokens) for timing the products of prefill.
_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """Seconds per token, float64 `[groups, formats]`: each column sums to the time of the uniform model."""

    decode: Doubles
    prefill: Doubles


def measure_seconds(candidates: Candidates, *, threads: int, step: Progress) -> Seconds:
    """Time every uniform model and every group's products, and return the seconds per token."""
    groups, formats = len(candidates.groups), len(candidates.formats)
    whole = _whole_models(candidates, range(formats), rounds=ROUNDS, threads=threads, step=step)
    table = Seconds(np.empty((groups, formats)), np.empty((groups, formats)))
    for column, format in enumerate(candidates.formats):
        for values, rows, seconds in (
            (table.decode, 1, whole[column, 0]),
            (table.prefill, _ROWS, whole[column, 1]),
        ):
            products = _products(candidates, format, rows, threads)
            values[:, column] = products * (seconds / products.sum())
    return table


def measured_again(candidates: Candidates, before: Seconds, *, threads: int, step: Progress) -> Seconds:
    """Return the earlier seconds `before`, scaled to the machine's speed now (other programs may share the machine).

    The uniform quantized models are timed again. The 16-bit model takes longest, so it is not timed again: its times
    change by the same factor as those of the first quantized model.
    """
    columns = range(1, len(candidates.formats))
    whole = _whole_models(candidates, columns, rounds=2, threads=threads, step=step)
    then = np.stack([before.decode.sum(0), before.prefill.sum(0)], axis=1)[1:]
    change = whole / then
    change = np.concatenate([change[:1], change])
    return Seconds(before.decode * change[:, 0], before.prefill * change[:, 1])


def plan_seconds(candidates: Candidates, picks: Picks, *, threads: int) -> tuple[float, float]:
    """Return the seconds per token of one plan, decode then prefill: medians of five rounds."""
    decoder = candidates.decoder(picks)
    prefill, decode = np.median([token_seconds(decoder, threads=threads) for _ in range(5)], axis=0)
    return float(decode), float(prefill)


def _whole_models(
    candidates: Candidates, columns: Sequence[int], *, rounds: int, threads: int, step: Progress
) -> Doubles:
    """Return the seconds per token of uniform models, `[columns, 2]`: decode, prefill.

    The models take turns. The fastest round counts, because other work on the machine only makes a round slower.
    """
    times = np.empty((rounds, len(columns), 2))
    for turn in range(rounds):
        for i, column in enumerate(columns):
            step("timing whole models", (turn + i / len(columns)) / rounds)
            decoder = candidates.decoder(np.full(len(candidates.groups), column))
            prefill, decode = token_seconds(decoder, threads=threads)
            times[turn, i] = decode, prefill
    return np.asarray(times.min(axis=0))


def token_seconds(decoder: Decoder, *, threads: int) -> tuple[float, float]:
    """Return the seconds per token of prefill, and of greedy decode after the prompt."""
    config = decoder.record.config
    steps = max(1, min(STEPS, config.max_positions // 2))
    prompt = max(1, min(PROMPT, config.max_positions - steps))
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


def _products(candidates: Candidates, format: str, rows: int, threads: int) -> Doubles:
    """Return the seconds of each group's products `[groups]`: the median of several passes, without the first."""
    weights = [candidates.weights(group, format) for group in candidates.groups]
    widest = max(max(w.format.rows, w.format.columns) for parts in weights for w in parts)
    x, y = np.ones((rows, widest), np.float32), np.empty((rows, widest), np.float32)

    def passes(count: int) -> list[list[float]]:
        return [
            [
                _time(parts, x, y, _rows_of(group, rows), threads)
                for group, parts in zip(candidates.groups, weights, strict=True)
            ]
            for _ in range(count)
        ]

    return np.asarray(np.median(passes(ROUNDS + 1)[1:], axis=0))


def _rows_of(group: Group, rows: int) -> int:
    """Return the input rows of a group: 1 for the head, because prefill computes logits of the last token only."""
    return 1 if group.kind in ("embedding", "head") else rows


def _time(
    parts: list[Weight], x: NDArray[np.float32], y: NDArray[np.float32], count: int, threads: int
) -> float:
    """Return the seconds of multiplying `count` rows of `x` by each weight."""
    start = time.perf_counter()
    for weight in parts:
        rows, columns = weight.format.rows, weight.format.columns
        status = library.load().zp_linear(
            weight.address, x.ctypes.data, count, columns, None, y.ctypes.data, rows, threads
        )
        library.check(status)
    return time.perf_counter() - start
