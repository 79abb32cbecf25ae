"""Choosing the next token from logits; every engine uses this numpy code, seeded.

The order of the steps is that of transformers: repetition penalty (Keskar et al., CTRL, arXiv:1909.05858), temperature,
top-k (Fan et al., arXiv:1805.04833), top-p (Holtzman et al., arXiv:1904.09751), min-p (Nguyen et al.,
arXiv:2407.01082), random draw.
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
from zeropoint.values.arrays import Logits, Tokens

#: float32's smallest normal and largest number. The temperature is clipped to this range.
_TINY, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling options. Temperature 0 is greedy decoding; the only other option with an effect then is the repetition
    penalty.

    - `top_k`: keep the k most likely tokens; 0 keeps all;
    - `top_p`: keep the smallest set of most likely tokens whose probabilities sum to at least `top_p`;
    - `min_p`: keep tokens with at least `min_p` times the probability of the most likely token;
    - `repetition_penalty`: for tokens that occurred before, divide positive logits by it and multiply negative ones;
    - `seed`: the seed of the random draws.

    Raises `UsageError` if a value is not a number or is out of range.
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
            except OverflowError as cause:  # an integer or fraction larger than any float
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
        """Return whether the most likely token is always chosen."""
        return self.temperature == 0


class Sampler:
    """Chooses the tokens of one sequence. `seen`: the tokens of the prompt, for the repetition penalty."""

    def __init__(self, sampling: Sampling, seen: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._seen = set(seen)
        # greedy decoding needs no random numbers, and importing numpy's generators takes two megabytes
        self._generator = None if sampling.greedy else np.random.default_rng(sampling.seed)

    def __call__(self, logits: Logits) -> int:
        """Return the next token from logits `[vocab]`. Raises `ArtifactError` if the logits are not finite."""
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


def likeliest(logits: Logits) -> Tokens:
    """Return the argmax token of each row of logits `[..., vocab]` (ties: lowest id).

    A logit of -inf marks a masked token. Raises `ArtifactError` if the largest logit of a row is NaN or infinite.
    """
    best: Tokens = logits.argmax(-1, keepdims=True)  # argmax returns the place of a NaN, if there is one
    if not np.isfinite(np.take_along_axis(logits, best, -1)).all():
        raise ArtifactError("the model's logits are not finite: its weights are damaged, or overflow")
    tokens: Tokens = best[..., 0]
    return tokens


def penalize(logits: Logits, seen: set[int], penalty: float) -> Logits:
    """Return logits with the repetition penalty applied to the tokens `seen`, clipped to float32.

    Returns the input array itself if nothing changes, otherwise a copy.
    """
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


def candidates(logits: Logits, sampling: Sampling) -> tuple[Tokens, NDArray[np.float64]]:
    """Return the tokens that pass top-k, top-p and min-p, and their probabilities, which sum to 1."""
    # float32 for the whole vocabulary: exp and partition take a quarter of their float64 time
    temperature = np.float32(min(max(sampling.temperature, _TINY), _LARGEST))
    with np.errstate(over="ignore"):  # overflow gives -inf, which has probability 0
        scaled = (logits - logits.max()) / temperature
    ids: Tokens = np.arange(len(scaled))
    if 0 < sampling.top_k < len(scaled):
        ids = np.flatnonzero(scaled >= np.partition(scaled, -sampling.top_k)[-sampling.top_k])
        scaled = scaled[ids]
    weights = np.exp(scaled)  # unnormalized: the most likely token has weight 1
    if sampling.top_p < 1:
        inside = _nucleus(weights, sampling.top_p)
        ids, weights = ids[inside], weights[inside]
    if sampling.min_p > 0:
        likely = weights >= sampling.min_p
        ids, weights = ids[likely], weights[likely]
    exact = weights.astype(np.float64)
    return ids, exact / exact.sum()


#: Top-p first sorts only this many tokens, which nearly always suffices: sorting a whole vocabulary takes milliseconds.
_FIRST_LOOK = 1024


def _nucleus(weights: NDArray[np.float32], share: float) -> Tokens:
    """Return the fewest indices that hold `share` of the total weight, largest weight first (ties: lowest index)."""
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
