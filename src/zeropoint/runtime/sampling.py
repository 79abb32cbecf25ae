"""Choosing the next token from logits, the same for every engine: seeded, in numpy.

The order is transformers': repetition penalty (Keskar et al., CTRL, arXiv:1909.05858), temperature, top-k (Fan et
al., arXiv:1805.04833), top-p (Holtzman et al., arXiv:1904.09751), min-p (Nguyen et al., arXiv:2407.01082), a draw.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, UsageError

Logits = NDArray[np.float32]
Ids = NDArray[np.int64]


#: float32's smallest normal and largest number, between which logits are divided by the temperature and stay finite.
_TINY, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. Temperature 0 is greedy, and then only the repetition penalty has an effect.

    - `top_k`: only the k most likely tokens; 0: all;
    - `top_p`: only the most likely tokens that together reach this probability;
    - `min_p`: only tokens at least this share as likely as the most likely one;
    - `repetition_penalty`: divides the positive logits of tokens seen before, multiplies the negative ones.

    Raises `UsageError` for a value that is no number, or out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), Real):
                raise UsageError(f"{name} must be a number, not {getattr(self, name)!r}")
            try:
                float(getattr(self, name))
            except OverflowError as cause:  # a whole number or a fraction beyond any float
                raise UsageError(
                    f"{name} is beyond {sys.float_info.max:.3g}: give a smaller number"
                ) from cause
        for name in ("top_k", "seed"):
            if not isinstance(getattr(self, name), Integral):
                raise UsageError(f"{name} must be a whole number, not {getattr(self, name)!r}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UsageError(f"the temperature is 0 (greedy) or above, not {self.temperature}")
        if self.top_k < 0:
            raise UsageError(f"top-k is 0 (all tokens) or above, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top-p is above 0 and at most 1, not {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise UsageError(f"min-p lies between 0 and 1, not {self.min_p}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise UsageError(f"the repetition penalty is above 0, not {self.repetition_penalty}")
        if self.seed < 0:
            raise UsageError(f"the seed is 0 or above, not {self.seed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class Sampler:
    """One sequence's choices; `seen` are the tokens before the first one."""

    def __init__(self, sampling: Sampling, seen: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._seen = set(seen)
        # greedy choices draw nothing, and numpy's generators cost two megabytes and their import
        self._generator = None if sampling.greedy else np.random.default_rng(sampling.seed)

    def __call__(self, logits: Logits) -> int:
        """The next token from logits `[vocab]`. Raises `ArtifactError` as `likeliest` does."""
        best = int(likeliest(logits))
        penalized = penalize(logits, self._seen, self.sampling.repetition_penalty)
        token = best if self.sampling.greedy and penalized is logits else self._choose(penalized)
        self._seen.add(token)
        return token

    def _choose(self, logits: Logits) -> int:
        if self._generator is None:
            return int(logits.argmax())
        ids, probabilities = candidates(logits, self.sampling)
        cumulative = np.cumsum(probabilities)
        drawn = np.searchsorted(cumulative, self._generator.random() * cumulative[-1], side="right")
        return int(ids[min(int(drawn), len(ids) - 1)])


def likeliest(logits: Logits) -> Ids:
    """The most likely token of each row of logits `[..., vocab]`; the first of equals.

    Raises `ArtifactError` for a row whose largest logit is NaN or infinite. Tokens at -inf are masked.
    """
    best: Ids = logits.argmax(-1, keepdims=True)  # of NaN, when there is one
    if not np.isfinite(np.take_along_axis(logits, best, -1)).all():
        raise ArtifactError("the model's logits are not finite: its weights are damaged, or overflow")
    found: Ids = best[..., 0]
    return found


def penalize(logits: Logits, seen: set[int], penalty: float) -> Logits:
    """The logits with those of seen tokens made less likely, within float32; the input is not changed."""
    if penalty == 1:
        return logits
    ids = np.fromiter((token for token in seen if 0 <= token < len(logits)), np.int64)
    if not ids.size:
        return logits
    out, before = logits.copy(), logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):
        after = np.where(before > 0, before / penalty, before * penalty)
    out[ids] = np.where(np.isfinite(before), np.clip(after, -_LARGEST, _LARGEST), before)
    return out


def candidates(logits: Logits, sampling: Sampling) -> tuple[Ids, NDArray[np.float64]]:
    """The tokens that may be drawn and their probabilities among themselves."""
    # float32 until few are left: exp and partition of a whole vocabulary take a quarter of the time
    temperature = np.float32(min(max(sampling.temperature, _TINY), _LARGEST))
    with np.errstate(over="ignore"):  # to -inf, which has no weight
        scaled = (logits - logits.max()) / temperature
    ids: Ids = np.arange(len(scaled))
    if 0 < sampling.top_k < len(scaled):
        ids = np.flatnonzero(scaled >= np.partition(scaled, -sampling.top_k)[-sampling.top_k])
        scaled = scaled[ids]
    weights = np.exp(scaled)  # of the most likely token: 1
    if sampling.top_p < 1:
        inside = _nucleus(weights, sampling.top_p)
        ids, weights = ids[inside], weights[inside]
    if sampling.min_p > 0:
        likely = weights >= sampling.min_p
        ids, weights = ids[likely], weights[likely]
    exact = weights.astype(np.float64)
    return ids, exact / exact.sum()


#: Sorting a whole vocabulary takes milliseconds, and the nucleus is nearly always among so many tokens.
_FIRST_LOOK = 1024


def _nucleus(weights: NDArray[np.float32], share: float) -> Ids:
    """The fewest, most likely places that hold `share` of the weight, most likely first; ties in order."""
    target = share * weights.sum(dtype=np.float64)
    for size in (_FIRST_LOOK, len(weights)):
        places = np.arange(len(weights))
        if size < len(weights):
            places = np.sort(np.argpartition(weights, -size)[-size:])
        order = places[np.argsort(-weights[places], kind="stable")]
        cumulative = np.cumsum(weights[order], dtype=np.float64)
        if cumulative[-1] >= target:
            break
    return order[: int(np.searchsorted(cumulative, target)) + 1]
