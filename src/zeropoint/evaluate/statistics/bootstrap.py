"""Confidence intervals by bootstrap over documents, vectorized.

Tokens of one document are not independent, so whole documents are drawn with replacement (a cluster bootstrap;
Efron and Tibshirani, 1993, chapter 8). Means are functions of per-document sums, so a resample is one row of document
counts, and all resamples together are one matrix product.

A gate can afford only a few documents. With 8 to 12 documents, a 95 % percentile interval misses the truth 9 to 13
times in 100 instead of 5 (docs/evaluation.md). Means are therefore *studentized*: each resample's deviation is divided
by the resample's own standard error, and the 95 % quantile of the absolute ratio replaces 1.96 (the symmetric
bootstrap-t; Hall, "On symmetric bootstrap confidence intervals", J. R. Stat. Soc. B 50, 1988). For positive means the
interval is computed on the logarithm, which is less skewed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.values.arrays import Doubles

RESAMPLES = 1000
CONFIDENCE = 0.95
POWER = 0.80
# With fewer documents than this, runs of tokens are resampled instead of documents.
MIN_UNITS = 8
_BLOCK_TOKENS = 128
# Confidence that the standard error used for `detectable` is at least the true one.
_PLANNING_CONFIDENCE = 0.90
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimate over `n` tokens: the value, its 95 % interval and its standard error."""

    value: float
    low: float
    high: float
    standard_error: float
    n: int
    detectable: float
    """The smallest true change that the interval detects in at least 80 % of cases."""

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
        """Return an estimate without uncertainty."""
        return cls(value, value, value, 0.0, n, 0.0)


@dataclass(frozen=True, slots=True)
class Resampler:
    """Bootstrap resamples of units (documents, or runs of tokens).

    `unit_of`, int64 `[tokens]`: the unit of each token. `counts`, float64 `[resamples, units]`: how often a resample
    draws each unit. `kind`: the unit in words.
    """

    unit_of: NDArray[np.int64]
    counts: NDArray[np.float64]
    kind: str

    @property
    def units(self) -> int:
        """The number of units."""
        return int(self.counts.shape[1])

    def sums(self, values: Doubles) -> Doubles:
        """Return the per-unit sums of per-token values: `[tokens]` -> `[units]`."""
        return np.bincount(self.unit_of, weights=values, minlength=self.units).astype(np.float64)

    def means(self, values: Doubles) -> Doubles:
        """Return the mean over tokens in each resample: `[tokens]` -> `[resamples]`."""
        return self._means_and_errors(values, self.counts)[0]

    def studentized(self, values: Doubles) -> tuple[Doubles, Doubles]:
        """Return the mean over tokens and its standard error, `[1 + resamples]` each: the observed one first."""
        return self._means_and_errors(values, np.vstack([np.ones((1, self.units)), self.counts]))

    def _means_and_errors(self, values: Doubles, counts: Doubles) -> tuple[Doubles, Doubles]:
        """Return means over tokens, as ratios of sums over units, and their linearized errors (Cochran, 1977, 6.4)."""
        totals, sizes = self.sums(values), self.sums(np.ones_like(values))
        tokens = counts @ sizes
        means = (counts @ totals) / tokens
        spread = counts @ totals**2 - 2 * means * (counts @ (totals * sizes)) + means**2 * (counts @ sizes**2)
        # Rounding noise of the subtraction above, when every unit has the same mean.
        noise = 64 * np.finfo(np.float64).eps * (counts @ totals**2)
        spread = np.where(spread > noise, spread, 0.0) * self.units / max(self.units - 1, 1)
        return np.asarray(means), np.asarray(np.sqrt(spread) / tokens)

    def quantiles(self, values: Doubles, q: float) -> Doubles:
        """Return the `q` quantile over tokens in each resample: `[tokens]` -> `[resamples]`."""
        order = np.argsort(values)
        ordered, units = values[order], self.unit_of[order]
        quantiles_drawn = np.empty(self.counts.shape[0])
        for start in range(0, quantiles_drawn.size, 64):  # 64 resamples at a time bound the memory
            weight = np.cumsum(self.counts[start : start + 64][:, units], axis=1)
            index = (weight < q * weight[:, -1:]).sum(axis=1)
            quantiles_drawn[start : start + 64] = ordered[np.minimum(index, ordered.size - 1)]
        return quantiles_drawn


def resampler(documents: NDArray[np.int64], *, seed: int = 0, resamples: int = RESAMPLES) -> Resampler:
    """Draw the resamples; `documents`, int64 `[tokens]`, is the document of each token.

    A text with fewer than eight documents is resampled by runs of 128 tokens (shorter runs for a short text, so that
    there are at least eight). The interval then covers these documents only. Raises `UsageError` for fewer than eight
    tokens.
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


def estimate_mean(values: Doubles, draws: Resampler) -> Estimate:
    """Return the mean of non-negative values `[tokens]`, for example KL divergences."""
    means, errors = draws.studentized(values)
    if errors[0] == 0:
        return Estimate.exact(float(values.mean()), values.size)
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample of zeros has no logarithm
        return _exponential(np.log(means), errors / means, values.size)


def estimate_exponential_of_mean(values: Doubles, draws: Resampler) -> Estimate:
    """Return `exp(mean)` of `[tokens]`: the perplexity of NLLs, or the perplexity ratio of differences of NLLs."""
    means, errors = draws.studentized(values)
    if errors[0] == 0:
        return Estimate.exact(float(np.exp(values.mean())), values.size)
    return _exponential(means, errors, values.size)


def _exponential(centers: Doubles, errors: Doubles, n: int) -> Estimate:
    """Return the estimate of exp(center) by bootstrap-t on center; `[1 + resamples]`, the observed one first."""
    center, error = float(centers[0]), float(errors[0])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(centers[1:] - center) / errors[1:]
    factor = float(np.quantile(np.nan_to_num(ratios, nan=np.inf), CONFIDENCE))
    if not math.isfinite(factor):
        raise UsageError("too few parts of the text differ for an interval: use a longer text")
    # The relative variance of the standard error; 0.5 / variation is its degrees of freedom.
    variation = float(np.var(np.nan_to_num(errors[1:]) / error))
    reach = math.exp((factor + _NORMAL.inv_cdf(POWER)) * _planned(0.5 / variation) * error)
    value = math.exp(center)
    low, high = math.exp(center - factor * error), math.exp(center + factor * error)
    return Estimate(value, low, high, error * value, n, value * (reach - 1))


def estimate_share(values: Doubles, draws: Resampler) -> Estimate:
    """Return the share of ones in `[tokens]`, with Wilson's interval at an effective sample size.

    The effective sample size is the number of independent tokens with the standard error that the units have (Korn and
    Graubard, Survey Methodology 24, 1998). A bootstrap fails for a share near one, because most resamples hold none of
    the few zeros.
    """
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


def estimate_quantile(values: Doubles, q: float, draws: Resampler) -> Estimate:
    """Return the `q` quantile of `[tokens]` with a percentile interval.

    The interval is widened by the ratio of Student's t to the normal quantile (Hesterberg, "What teachers should know
    about the bootstrap", Am. Stat. 69, 2015).
    """
    return _percentile_estimate(float(np.quantile(values, q)), draws.quantiles(values, q), draws, values.size)


def estimate_ratio(values: Doubles, base: Doubles, draws: Resampler) -> Estimate:
    """Return the ratio of the means of two models' non-negative values on the same tokens, `[tokens]` each.

    The interval is paired: both means are of the same resamples. It is a percentile interval, widened as that of
    `estimate_quantile`. Raises `UsageError` if the values of `base` are all zero.
    """
    if not base.any():
        raise UsageError(
            "the ratio to a model without any divergence is not defined: there is nothing to recover"
        )
    value = float(values.mean() / base.mean())
    resampled = draws.means(values) / np.maximum(draws.means(base), np.finfo(np.float64).tiny)
    return _percentile_estimate(value, resampled, draws, values.size)


def _percentile_estimate(value: float, resampled: Doubles, draws: Resampler, n: int) -> Estimate:
    """Return the estimate of a statistic from its resampled values, with a widened percentile interval."""
    freedom = draws.units - 1
    t = t_quantile(0.5 + CONFIDENCE / 2, freedom)
    tail = 100 * _NORMAL.cdf(-t * math.sqrt(draws.units / freedom))
    low, high = np.percentile(resampled, [tail, 100 - tail])
    # The percentile interval of a skewed statistic may exclude the value, which would confuse readers.
    low, high = float(min(low, value)), float(max(high, value))
    return Estimate(value, low, high, float(np.std(resampled)), n, _detectable(value, low, high, t, freedom))


def _detectable(value: float, low: float, high: float, factor: float, freedom: float) -> float:
    """Return the detectable change: the longer arm of an interval of `factor` standard errors, scaled to 80 % power."""
    reach = (factor + _NORMAL.inv_cdf(POWER)) * _planned(freedom) / factor
    return float(reach * max(value - low, high - value))


def _planned(freedom: float) -> float:
    """Return the factor from an estimated standard error to its 90 % upper confidence limit.

    The standard error comes from few units, so planning uses the upper limit (Browne, Stat. Med. 14, 1995). The
    chi-squared quantile is Wilson and Hilferty's approximation.
    """
    part = 2 / (9 * max(freedom, 2.0))
    shrunk = 1 - part - _NORMAL.inv_cdf(_PLANNING_CONFIDENCE) * math.sqrt(part)
    return float(max(shrunk, 0.3) ** -1.5)


@cache
def t_quantile(p: float, freedom: int) -> float:
    """Return the `p` quantile of Student's t with `freedom` degrees of freedom; `p` is at least 0.5.

    Bisection on the distribution function. SciPy would be a second of import and 145 MB of installation for this alone.
    """
    low, high = 0.0, 1.0
    while _t_probability(high, freedom) < p:
        low, high = high, 2 * high
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (middle, high) if _t_probability(middle, freedom) < p else (low, middle)
    return high


def _t_probability(t: float, freedom: int) -> float:
    """Return the probability that Student's t is at most `t >= 0` (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle, odd = math.atan(t / math.sqrt(freedom)), freedom % 2
    steps = np.arange(1, (freedom - odd) // 2)
    factors = (2 * steps - 1 + odd) / (2 * steps + odd) * math.cos(angle) ** 2
    total = math.sin(angle) * math.cos(angle) ** odd * (1 + float(np.cumprod(factors).sum()))
    if odd:
        total = 2 / math.pi * (angle + (total if freedom > 1 else 0))
    return (1 + total) / 2
