"""Prefill and decode speed of a loaded model: the median of repeats after a warm-up, with the range of repeats."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.protocol import Measured

MIN_REPEATS = 3
_WARM_UP_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Rate:
    """Tokens per second over all sequences of the batch: median, slowest and fastest repeat."""

    median: float
    slowest: float
    fastest: float
    repeats: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Speed:
    """The rates of prefill and of decode."""

    prefill: Rate
    decode: Rate

    def to_json(self) -> dict[str, Any]:
        return {"prefill": self.prefill.to_json(), "decode": self.decode.to_json()}


def measure_speed(
    runner: Measured,
    prompt: Sequence[int],
    *,
    new_tokens: int = 128,
    batch: int = 1,
    repeats: int = 5,
    progress: Callable[[float], None] | None = None,
) -> Speed:
    """Time `repeats` runs of `batch` copies of `prompt` (token ids) and `new_tokens` decode steps.

    A short untimed run goes first, so that lazy set-up and cold caches are not timed. Raises `UsageError` for fewer
    than three repeats, an empty prompt, no new tokens or an empty batch.
    """
    if repeats < MIN_REPEATS:
        raise UsageError(f"speed needs at least {MIN_REPEATS} repeats for a spread, not {repeats}")
    if not prompt or new_tokens < 1 or batch < 1:
        raise UsageError("speed needs at least one prompt token, one new token and a batch of one")
    tokens = np.tile(np.asarray(prompt, np.int64), (batch, 1))
    runner.prefill_decode(tokens, min(_WARM_UP_TOKENS, new_tokens))
    seconds = []
    for index in range(repeats):
        seconds.append(runner.prefill_decode(tokens, new_tokens))
        if progress is not None:
            progress((index + 1) / repeats)
    return Speed(
        _rate(tokens.size, [prefill for prefill, _ in seconds]),
        _rate(batch * new_tokens, [decode for _, decode in seconds]),
    )


def _rate(tokens: int, seconds: Sequence[float]) -> Rate:
    rates = [tokens / max(s, 1e-9) for s in seconds]
    return Rate(statistics.median(rates), min(rates), max(rates), len(rates))
