"""Sampling options, and the choice of the next token from logits, which all engines share.

The order of the steps is that of vLLM and transformers: logit bias, repetition penalty (Keskar et al., CTRL,
arXiv:1909.05858), frequency and presence penalties (OpenAI), temperature, top-k (Fan et al., arXiv:1805.04833), top-p
(Holtzman et al., arXiv:1904.09751), min-p (Nguyen et al., arXiv:2407.01082), random draw. `Sampler.adjust` does the
steps before the temperature, `kernels.sampling` the others.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import cast

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.kernels import sampling as kernel
from zeropoint.values.arrays import Int32s, Logits, Tokens

#: float32's smallest normal and largest number. The temperature is clipped to this range.
_TINY, _LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
#: Mask of the bits of a seed that are used.
_SEEDS = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling options. Temperature 0 is greedy decoding, in which penalties and the logit bias also have an effect.

    - `top_k`: keep the k most likely tokens; 0 keeps all;
    - `top_p`: keep the smallest set of most likely tokens whose probabilities sum to at least `top_p`;
    - `min_p`: keep tokens with at least `min_p` times the probability of the most likely token;
    - `repetition_penalty`: for tokens that occurred before, divide positive logits by it and multiply negative ones;
    - `presence_penalty`: subtracted from the logits of tokens that were generated before;
    - `frequency_penalty`: subtracted from a token's logit once for each time that the token was generated before;
    - `logit_bias`: a mapping of token ids to numbers that are added to their logits, kept as sorted pairs. Ids outside
      the vocabulary have no effect;
    - `seed`: the seed of the random draws; its lowest 64 bits are used.

    Raises `UsageError` if a value is not a number or is out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] | Iterable[tuple[int, float]] = ()

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
            _check_number(name, getattr(self, name))
        for name in ("presence_penalty", "frequency_penalty"):
            _check_finite(name, getattr(self, name))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
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

    def draw(self, number: int, mask: Int32s | None = None) -> kernel.Draw:
        """Return the kernel's options for token `number` (0, 1, ...) of a text. `mask`: as in `kernel.Draw`."""
        temperature = 0.0 if self.greedy else min(max(float(self.temperature), _TINY), _LARGEST)
        top_p, min_p, seed = float(self.top_p), float(self.min_p), int(self.seed) & _SEEDS
        return kernel.Draw(temperature, int(self.top_k), top_p, min_p, seed, number, mask)


def _check_number(name: str, value: object) -> None:
    """Raise `UsageError` unless the value is a number in the range of floats."""
    if not isinstance(value, Real):
        raise UsageError(f"{name} must be a number, not {value!r:.100}")
    try:
        float(value)
    except OverflowError as cause:  # an integer or fraction larger than any float
        raise UsageError(f"{name} is beyond {sys.float_info.max:.3g}: give a smaller number") from cause


def _check_finite(name: str, value: float) -> None:
    """Raise `UsageError` unless the value is a finite number."""
    _check_number(name, value)
    if not math.isfinite(value):
        raise UsageError(f"{name} must be a finite number, not {value}")


def _pairs(bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return a logit bias as pairs, sorted by id. Raises `UsageError` unless ids are integers and values finite."""
    try:
        pairs = dict(bias.items() if isinstance(bias, Mapping) else bias)
    except (TypeError, ValueError) as cause:
        raise UsageError(f"logit_bias must map token ids to numbers, not be {bias!r:.100}") from cause
    for token, value in pairs.items():
        if not isinstance(token, Integral):
            raise UsageError(f"logit_bias must have token ids as its keys, not {token!r:.100}")
        _check_finite(f"logit_bias of token {token!s:.20}", value)
    return tuple(sorted((int(token), float(value)) for token, value in pairs.items()))


class Sampler:
    """Chooses the tokens of one text. `seen`: the tokens of the prompt, for the repetition penalty."""

    def __init__(self, sampling: Sampling, seen: Sequence[int] = ()) -> None:
        self.sampling = sampling
        self._seen = set(seen)
        self._generated = Counter[int]()
        self.count = 0  # number of tokens chosen

    def __call__(self, logits: Logits) -> int:
        """Return the next token from logits `[vocab]`. Raises `ArtifactError` if the logits are not finite."""
        logits = self.adjust(logits)
        if self.sampling.greedy:
            token = int(likeliest(logits))
        else:
            token = int(kernel.choose(logits[None], [self.sampling.draw(self.count)])[0])
            if token < 0:
                raise ArtifactError(NOT_FINITE)
        self.add(token)
        return token

    def adjust(self, logits: Logits) -> Logits:
        """Return logits with the logit bias and the penalties applied.

        Returns the input array itself if nothing changes, otherwise a copy.
        """
        options = self.sampling
        bias = cast(tuple[tuple[int, float], ...], options.logit_bias)
        logits = penalize(add_bias(logits, bias), self._seen, options.repetition_penalty)
        if options.frequency_penalty == 0 and options.presence_penalty == 0:
            return logits
        return add_bias(
            logits,
            [
                (token, -(options.frequency_penalty * count + options.presence_penalty))
                for token, count in self._generated.items()
            ],
        )

    def add(self, token: int) -> None:
        """Count a token as chosen."""
        self._seen.add(token)
        self._generated[token] += 1
        self.count += 1


#: Error message for logits from which no token can be chosen.
NOT_FINITE = "the model's logits are not finite: its weights are damaged, or overflow"


def likeliest(logits: Logits) -> Tokens:
    """Return the argmax token of each row of logits `[..., vocab]` (ties: lowest id).

    A logit of -inf marks a masked token. Raises `ArtifactError` if the largest logit of a row is NaN or infinite.
    """
    best: Tokens = logits.argmax(-1, keepdims=True)  # argmax returns the place of a NaN, if there is one
    if not np.isfinite(np.take_along_axis(logits, best, -1)).all():
        raise ArtifactError(NOT_FINITE)
    tokens: Tokens = best[..., 0]
    return tokens


def penalize(logits: Logits, seen: set[int], penalty: float) -> Logits:
    """Return logits with the repetition penalty applied to the tokens `seen`, clipped to float32.

    Returns the input array itself if nothing changes, otherwise a copy.
    """
    if penalty == 1:
        return logits
    ids = np.fromiter((token for token in seen if 0 <= token < len(logits)), np.int64)
    before = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):
        return _replace(logits, ids, np.where(before > 0, before / penalty, before * penalty))


def add_bias(logits: Logits, bias: Sequence[tuple[int, float]]) -> Logits:
    """Return logits with numbers added to those of some tokens, clipped to float32.

    Returns the input array itself if nothing changes, otherwise a copy.
    """
    inside = [(token, value) for token, value in bias if 0 <= token < len(logits)]
    ids = np.array([token for token, _ in inside], np.int64)
    values = np.array([value for _, value in inside], np.float64)
    return _replace(logits, ids, logits[ids].astype(np.float64) + values)


def _replace(logits: Logits, ids: Tokens, values: NDArray[np.float64]) -> Logits:
    """Return logits with new values for some tokens, clipped to float32. Infinities and NaNs are not replaced."""
    if not ids.size:
        return logits
    out, before = logits.copy(), logits[ids]
    out[ids] = np.where(np.isfinite(before), np.clip(values, -_LARGEST, _LARGEST), before)
    return out


def candidates(logits: Logits, sampling: Sampling) -> tuple[Tokens, NDArray[np.float64]]:
    """Return the tokens that pass top-k, top-p and min-p, and their probabilities, which sum to 1."""
    draw = sampling.draw(0)
    units = kernel.weigh(logits, draw.temperature, draw.top_k)
    ids = kernel.likely(units, draw.top_p, draw.min_p)
    exact = units[ids].astype(np.float64)
    return ids, exact / exact.sum()
