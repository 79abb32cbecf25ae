"""What each group costs of a token in each format, decoding and reading a prompt, measured here.

Each product is timed alone, with the weights read in the order of a token, so that they come from where decoding
finds them. What a token takes beside its products (attention, norms, the steps between) is in the time of whole
models in one format; it is shared out over the groups in proportion, so that predictions are exact for uniform
models and between them follow the products.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.fitting.candidates import Candidates, Group, Step
from zeropoint.kernels import library
from zeropoint.planning.solver import Picks
from zeropoint.runtime.native.library import Decoder, Weight
from zeropoint.runtime.native.session import read

Floats = NDArray[np.float64]

#: As `zeropoint bench` measures: a prompt, then so many steps.
PROMPT, STEPS, ROUNDS = 512, 128, 4
#: Rows of an input that a prompt's products are timed with.
_ROWS = 128


@dataclass(frozen=True, slots=True, eq=False)
class Seconds:
    """Seconds of a token `[groups, formats]`: columns sum up to the uniform model's time."""

    decode: Floats
    prefill: Floats


def measure_seconds(candidates: Candidates, *, threads: int, step: Step) -> Seconds:
    """Time every uniform model and every group's products."""
    groups, formats = len(candidates.groups), len(candidates.formats)
    whole = _whole_models(candidates, range(formats), rounds=ROUNDS, threads=threads, step=step)
    found = Seconds(np.empty((groups, formats)), np.empty((groups, formats)))
    for column, format in enumerate(candidates.formats):
        for table, rows, seconds in (
            (found.decode, 1, whole[column, 0]),
            (found.prefill, _ROWS, whole[column, 1]),
        ):
            products = _products(candidates, format, rows, threads)
            table[:, column] = products * (seconds / products.sum())
    return found


def measured_again(candidates: Candidates, before: Seconds, *, threads: int, step: Step) -> Seconds:
    """Seconds measured some time ago, scaled to the machine as it is now: others may share it, or its memory.

    The uniform quantized models are timed again; the 16-bit one, which takes longest, is taken to change as the first
    of them does.
    """
    columns = range(1, len(candidates.formats))
    whole = _whole_models(candidates, columns, rounds=2, threads=threads, step=step)
    then = np.stack([before.decode.sum(0), before.prefill.sum(0)], axis=1)[1:]
    change = whole / then
    change = np.concatenate([change[:1], change])
    return Seconds(before.decode * change[:, 0], before.prefill * change[:, 1])


def plan_seconds(candidates: Candidates, picks: Picks, *, threads: int) -> tuple[float, float]:
    """Seconds a token of one plan, decoding and reading: the medians of a few rounds, as `zeropoint bench` tells."""
    decoder = candidates.decoder(picks)
    prefill, decode = np.median([token_seconds(decoder, threads=threads) for _ in range(5)], axis=0)
    return float(decode), float(prefill)


def _whole_models(
    candidates: Candidates, columns: Sequence[int], *, rounds: int, threads: int, step: Step
) -> Floats:
    """Seconds of a token in uniform models `[columns, 2]`, decoding and reading: in turns, and the best counts, since
    other work only ever makes a round slower."""
    times = np.empty((rounds, len(columns), 2))
    for turn in range(rounds):
        for i, column in enumerate(columns):
            step("timing whole models", (turn + i / len(columns)) / rounds)
            decoder = candidates.decoder(np.full(len(candidates.groups), column))
            prefill, decode = token_seconds(decoder, threads=threads)
            times[turn, i] = decode, prefill
    return np.asarray(times.min(axis=0))


def token_seconds(decoder: Decoder, *, threads: int) -> tuple[float, float]:
    """Seconds a token of a prompt, and of decoding one token after another behind it."""
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


def _products(candidates: Candidates, format: str, rows: int, threads: int) -> Floats:
    """Seconds of each group's products `[groups]`: the median of a few passes over all of them."""
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
    """Only the last token of a prompt is given logits."""
    return 1 if group.kind in ("embedding", "head") else rows


def _time(
    parts: list[Weight], x: NDArray[np.float32], y: NDArray[np.float32], count: int, threads: int
) -> float:
    start = time.perf_counter()
    for weight in parts:
        rows, columns = weight.format.rows, weight.format.columns
        status = library.load().zp_linear(
            weight.address, x.ctypes.data, count, columns, None, y.ctypes.data, rows, threads
        )
        library.check(status)
    return time.perf_counter() - start
