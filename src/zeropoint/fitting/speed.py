"""Timing: the seconds per token of each group in each format, for decode and for prefill, measured on this machine.

The engine times its own kernels (`runtime.engine.Timing`). Each group's matrix products are timed alone, group
after group as in the forward pass, so that weights come from the same cache or memory as in decode. Whole models in one
format are timed too. Their extra time (attention, norms, thread synchronisation) is shared out over the groups in
proportion to the products, so predictions are exact for uniform models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zeropoint.fitting.candidates import Candidates, Group
from zeropoint.planning.solver import Picks
from zeropoint.progress import Progress
from zeropoint.runtime import fitting_engine
from zeropoint.runtime.engine import Timing
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


def token_seconds(decoder: Any, *, threads: int) -> tuple[float, float]:
    """Return the seconds per token of prefill, and of greedy decode after the prompt."""
    return _timing().token_seconds(decoder, prompt=PROMPT, steps=STEPS, threads=threads)


def _products(candidates: Candidates, format: str, rows: int, threads: int) -> Doubles:
    """Return the seconds of each group's products `[groups]`: the median of several passes, without the first."""
    groups = [(candidates.weights(group, format), _rows_of(group, rows)) for group in candidates.groups]
    passes = _timing().product_seconds(groups, passes=ROUNDS + 1, threads=threads)
    return np.asarray(np.median(passes[1:], axis=0))


def _rows_of(group: Group, rows: int) -> int:
    """Return the input rows of a group: 1 for the head, because prefill computes logits of the last token only."""
    return 1 if group.kind in ("embedding", "head") else rows


def _timing() -> Timing:
    """Return the timing of the engine that `fit` plans for."""
    timing = fitting_engine().timing()
    assert timing is not None
    return timing
