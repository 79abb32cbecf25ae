"""Intervals by bootstrap over documents, vectorized.

Tokens of one document are not independent, so whole documents are drawn with replacement (a cluster bootstrap;
Efron and Tibshirani, 1993, chapter 8). Every statistic here is a function of per-document sums, so a resample is one
row of counts and all resamples are one matrix product.

A handful of documents is what a gate can afford, and there the familiar percentile interval leaves out the truth 9 to
13 times in 100 where it promises 5 (8 to 12 documents; docs/evaluation.md). Means are therefore
*studentized*: each resample's deviation is divided by its own standard error, and the 95 % quantile of the absolute
ratio replaces 1.96 (the symmetric bootstrap-t; Hall, "On symmetric bootstrap confidence intervals", J. R. Stat. Soc.
B 50, 1988). Positive means are treated so on their logarithm, where their skew is small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError

RESAMPLES = 1000
CONFIDENCE = 0.95
POWER = 0.80
# Below this many documents a bootstrap over documents says little, so runs of tokens stand in.
MIN_UNITS = 8
_BLOCK_TOKENS = 128
# How sure it is that the standard error used for planning is no smaller than the true one.
_PLANNING_CONFIDENCE = 0.90
_NORMAL = NormalDist()

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, its 95 % interval and standard error, over `n` tokens, and the smallest change that would be seen."""

    value: float
    low: float
    high: float
    standard_error: float
    n: int
    detectable: float
    """A change of the truth by this much is found by the interval at least 80 % of the time."""

    def to_json(self) -> dict[str, float | int]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "standard_error": self.standard_error,
            "n": self.n,
            "detectable": self.detectable,
        }

    @classmethod
    def exact(cls, value: float, n: int) -> Estimate:
        return cls(value, value, value, 0.0, n, 0.0)


@dataclass(frozen=True, slots=True)
class Resampler:
    """`unit_of` int64 `[tokens]`: which unit each token is in; `counts` `[resamples, units]`: how
    often each unit is drawn; `kind` names the unit in words."""

    unit_of: NDArray[np.int64]
    counts: NDArray[np.float64]
    kind: str

    @property
    def units(self) -> int:
        return int(self.counts.shape[1])

    def sums(self, values: Floats) -> Floats:
        """Per-unit sums of per-token values: `[tokens]` -> `[units]`."""
        return np.bincount(self.unit_of, weights=values, minlength=self.units).astype(np.float64)

    def means(self, values: Floats) -> Floats:
        """The mean over tokens in each resample: `[tokens]` -> `[resamples]`."""
        return self._means_and_errors(values, self.counts)[0]

    def studentized(self, values: Floats) -> tuple[Floats, Floats]:
        """The mean over tokens and its standard error, `[1 + resamples]` each: as observed, then in each resample."""
        return self._means_and_errors(values, np.vstack([np.ones((1, self.units)), self.counts]))

    def _means_and_errors(self, values: Floats, counts: Floats) -> tuple[Floats, Floats]:
        """A mean over tokens is a ratio of sums over units; its error is the linearized one (Cochran, 1977, 6.4)."""
        totals, sizes = self.sums(values), self.sums(np.ones_like(values))
        tokens = counts @ sizes
        means = (counts @ totals) / tokens
        spread = counts @ totals**2 - 2 * means * (counts @ (totals * sizes)) + means**2 * (counts @ sizes**2)
        # Cancellation leaves about this much where every unit has the same mean.
        noise = 64 * np.finfo(np.float64).eps * (counts @ totals**2)
        spread = np.where(spread > noise, spread, 0.0) * self.units / max(self.units - 1, 1)
        return np.asarray(means), np.asarray(np.sqrt(spread) / tokens)

    def quantiles(self, values: Floats, q: float) -> Floats:
        """The `q` quantile over tokens in each resample: `[tokens]` -> `[resamples]`."""
        order = np.argsort(values)
        ordered, units = values[order], self.unit_of[order]
        found = np.empty(self.counts.shape[0])
        for start in range(0, found.size, 64):  # 64 resamples at a time bound the memory
            weight = np.cumsum(self.counts[start : start + 64][:, units], axis=1)
            index = (weight < q * weight[:, -1:]).sum(axis=1)
            found[start : start + 64] = ordered[np.minimum(index, ordered.size - 1)]
        return found


def resampler(documents: NDArray[np.int64], *, seed: int = 0, resamples: int = RESAMPLES) -> Resampler:
    """Draw the resamples for tokens whose documents are `documents` `[tokens]`.

    Texts with fewer than eight documents are resampled by runs of 128 tokens instead, short ones by eight shorter
    runs: the interval then speaks of these documents only. Raises UsageError for fewer than eight tokens.
    """
    if documents.size < MIN_UNITS:
        raise UsageError(f"{documents.size} scored tokens are too few for an interval: use a longer text")
    _, unit_of = np.unique(documents, return_inverse=True)
    kind = "documents"
    if unit_of.max() + 1 < MIN_UNITS:
        block = min(_BLOCK_TOKENS, documents.size // MIN_UNITS)
        unit_of, kind = np.arange(documents.size) // block, f"runs of {block} tokens"
    units = int(unit_of.max()) + 1
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=resamples)
    return Resampler(unit_of.astype(np.int64), counts.astype(np.float64), kind)


def estimate_mean(values: Floats, draws: Resampler) -> Estimate:
    """The mean of values that are never negative, `[tokens]`: a KL divergence."""
    means, errors = draws.studentized(values)
    if errors[0] == 0:
        return Estimate.exact(float(values.mean()), values.size)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of zeros has no logarithm
        return _exponential(np.log(means), errors / means, values.size)


def estimate_exponential_of_mean(values: Floats, draws: Resampler) -> Estimate:
    """`exp(mean)` of `[tokens]`: a perplexity of log likelihoods, a perplexity ratio of their differences."""
    means, errors = draws.studentized(values)
    if errors[0] == 0:
        return Estimate.exact(float(np.exp(values.mean())), values.size)
    return _exponential(means, errors, values.size)


def _exponential(centers: Floats, errors: Floats, n: int) -> Estimate:
    """exp of a centre from its bootstrap-t: `[1 + resamples]`, the observed one first."""
    center, error = float(centers[0]), float(errors[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(centers[1:] - center) / errors[1:]
    factor = float(np.quantile(np.nan_to_num(ratios, nan=np.inf), CONFIDENCE))
    if not math.isfinite(factor):
        raise UsageError("too few parts of the text differ for an interval: use a longer text")
    # How much the standard error varies from sample to sample, as degrees of freedom.
    variation = float(np.var(np.nan_to_num(errors[1:]) / error))
    reach = math.exp((factor + _NORMAL.inv_cdf(POWER)) * _planned(0.5 / variation) * error)
    value = math.exp(center)
    low, high = math.exp(center - factor * error), math.exp(center + factor * error)
    return Estimate(value, low, high, error * value, n, value * (reach - 1))


def estimate_share(values: Floats, draws: Resampler) -> Estimate:
    """The share of ones in `[tokens]`: Wilson's interval with the sample size that independent tokens would need for
    the standard error seen between units (Korn and Graubard, Survey Methodology 24, 1998). A share near one has no
    usable bootstrap: most resamples hold none of the few zeros."""
    means, errors = draws.studentized(values)
    share, error = float(means[0]), float(errors[0])
    size = float(values.size)
    if error > 0:
        size = min(size, share * (1 - share) / error**2)
    freedom = draws.units - 1
    t = t_quantile(0.5 + CONFIDENCE / 2, freedom)
    center = (share + t * t / (2 * size)) / (1 + t * t / size)
    half = t / (1 + t * t / size) * math.sqrt(share * (1 - share) / size + t * t / (4 * size**2))
    low, high = min(center - half, share), max(center + half, share)
    return Estimate(share, low, high, error, values.size, _detectable(share, low, high, t, freedom))


def estimate_quantile(values: Floats, q: float, draws: Resampler) -> Estimate:
    """A quantile over `[tokens]`: the percentile interval, widened as t is wider than the normal distribution
    (Hesterberg, "What teachers should know about the bootstrap", Am. Stat. 69, 2015)."""
    value, resampled = float(np.quantile(values, q)), draws.quantiles(values, q)
    freedom = draws.units - 1
    t = t_quantile(0.5 + CONFIDENCE / 2, freedom)
    tail = 100 * _NORMAL.cdf(-t * math.sqrt(draws.units / freedom))
    low, high = np.percentile(resampled, [tail, 100 - tail])
    # The value itself may sit outside the percentile interval of a skewed statistic; an interval
    # that leaves out its own value only confuses.
    low, high = float(min(low, value)), float(max(high, value))
    error = float(np.std(resampled))
    return Estimate(value, low, high, error, values.size, _detectable(value, low, high, t, freedom))


def _detectable(value: float, low: float, high: float, factor: float, freedom: float) -> float:
    """The longer arm of an interval made with `factor` standard errors, stretched to be passed 80 % of the time."""
    reach = (factor + _NORMAL.inv_cdf(POWER)) * _planned(freedom) / factor
    return float(reach * max(value - low, high - value))


def _planned(freedom: float) -> float:
    """How many times larger than the standard error seen to take it when saying what could be found: its upper
    confidence limit, because it was estimated from few units (Browne, Stat. Med. 14, 1995). The chi-squared
    quantile is Wilson and Hilferty's."""
    part = 2 / (9 * max(freedom, 2.0))
    shrunk = 1 - part - _NORMAL.inv_cdf(_PLANNING_CONFIDENCE) * math.sqrt(part)
    return float(max(shrunk, 0.3) ** -1.5)


def t_quantile(p: float, freedom: int) -> float:
    """Student's t, by the expansion of Abramowitz and Stegun 26.7.5: to 1e-3 from 7 degrees of freedom on."""
    z = _NORMAL.inv_cdf(p)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return z + sum(term / float(freedom) ** (i + 1) for i, term in enumerate(terms))
