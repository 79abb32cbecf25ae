"""Intervals over documents: against plain loops, and by simulation with known distributions.

The simulated documents are of unequal length (60 to 2200 tokens), and the tokens of one depend on each other: they
share the document's own mean. Few documents are the case that matters; 8 is the fewest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.evaluate.statistics.bootstrap import (
    Estimate,
    Resampler,
    estimate_exponential_of_mean,
    estimate_mean,
    estimate_quantile,
    estimate_share,
    resampler,
    t_quantile,
)

Floats = NDArray[np.float64]
Text = tuple[Floats, Resampler]
PAIRS = 1000


def texts(units: int, count: int, values: Callable[[np.random.Generator, Floats], Floats]) -> Iterator[Text]:
    """`count` texts of `units` documents: one value a run of 20 tokens, `values(rng, document of each run)`."""
    rng = np.random.default_rng(units)
    for seed in range(count):
        runs = np.clip(rng.lognormal(6.2, 0.7, units), 60, 2200).astype(int) // 20
        documents = np.repeat(np.arange(units), runs)
        yield values(rng, documents), resampler(documents, seed=seed, resamples=500)


def divergences(rng: np.random.Generator, documents: Floats) -> Floats:
    """KL with a mean of 1: heavy-tailed in its tokens, spread by a tenth between documents, as measured on int4."""
    spread = 0.1
    means = rng.lognormal(-(spread**2) / 2, spread, int(documents.max()) + 1)[documents]
    return np.asarray(means * rng.gamma(0.5, 2.0, documents.size))


def differences(rng: np.random.Generator, documents: Floats) -> Floats:
    """Differences of log likelihoods with a mean of 0, of which half the documents' variance is their own."""
    own = rng.normal(0, 0.02, int(documents.max()) + 1)[documents]
    return np.asarray(own + rng.standard_t(5, documents.size) * 0.1)


def agreements(rng: np.random.Generator, documents: Floats) -> Floats:
    share = rng.beta(0.95 * 100, 0.05 * 100, int(documents.max()) + 1)[documents]
    return np.asarray(rng.random(documents.size) < share, np.float64)


CASES = {
    "kl": (divergences, estimate_mean, 1.0),
    "perplexity_ratio": (differences, estimate_exponential_of_mean, 1.0),
    "top1": (agreements, estimate_share, 0.95),
}


@pytest.mark.parametrize("units", [10, 30])
@pytest.mark.parametrize("case", CASES)
def test_false_alarms_are_five_in_a_hundred(case: str, units: int) -> None:
    values, estimator, truth = CASES[case]
    found = [estimator(*text) for text in texts(units, PAIRS, values)]
    missed = np.mean([not each.low <= truth <= each.high for each in found])
    assert 0.035 <= missed <= 0.065, missed


@pytest.mark.parametrize("units", [10, 30])
def test_a_detectable_rise_of_perplexity_is_detected(units: int) -> None:
    hits = []
    stated: Estimate | None = None
    for values, draws in texts(units, PAIRS, differences):
        if stated is not None:  # of the text before, which differs in its chances alone
            changed = estimate_exponential_of_mean(values + np.log1p(stated.detectable), draws)
            hits.append(changed.low > 1)
        stated = estimate_exponential_of_mean(values, draws)
    assert np.mean(hits) >= 0.80, np.mean(hits)


@pytest.mark.parametrize("units", [10, 30])
def test_a_divergence_detectably_below_its_bound_passes(units: int) -> None:
    hits = []
    bound = 0.0
    for values, draws in texts(units, PAIRS, divergences):
        found = estimate_mean(values, draws)
        hits.append(found.high <= bound)
        bound = 1 + found.detectable / found.value
    assert np.mean(hits[1:]) >= 0.80, np.mean(hits)


def test_the_percentile_interval_was_the_reason() -> None:
    missed = []
    for values, draws in texts(8, PAIRS, differences):
        low, high = np.percentile(draws.means(values), [2.5, 97.5])
        missed.append(not low <= 0 <= high)
    assert np.mean(missed) > 0.09


def test_bootstrap_of_a_mean_matches_its_standard_error() -> None:
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(200), 5)
    values = rng.normal(3, 1, 200).clip(0).repeat(5)  # wholly dependent within a document
    found = estimate_mean(values, resampler(documents, seed=1))
    assert found.standard_error == pytest.approx(values.std() / np.sqrt(200), rel=0.02)
    assert found.high - found.low == pytest.approx(2 * 1.96 * found.standard_error, rel=0.1)


def test_bootstrap_against_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    documents = np.sort(rng.integers(0, 10, 300))
    values = rng.exponential(1, 300)
    draws = resampler(documents, seed=2, resamples=50)
    means, errors = draws.studentized(values)
    np.testing.assert_allclose(means[1:], draws.means(values))
    for index in range(50):
        drawn = np.concatenate(
            [np.tile(values[documents == d], int(n)) for d, n in enumerate(draws.counts[index])]
        )
        assert draws.means(values)[index] == pytest.approx(drawn.mean())
        assert draws.quantiles(values, 0.9)[index] == np.quantile(drawn, 0.9, method="inverted_cdf")
        residuals = [
            n * (values[documents == d] - drawn.mean()).sum() ** 2 for d, n in enumerate(draws.counts[index])
        ]
        assert errors[index + 1] == pytest.approx(np.sqrt(10 / 9 * sum(residuals)) / drawn.size)


def test_few_documents_are_resampled_by_runs() -> None:
    draws = resampler(np.zeros(1280, np.int64))
    assert (draws.units, draws.kind) == (10, "runs of 128 tokens")
    draws = resampler(np.zeros(80, np.int64))
    assert (draws.units, draws.kind) == (8, "runs of 10 tokens")
    with pytest.raises(UsageError, match="too few for an interval"):
        resampler(np.zeros(7, np.int64))


def test_without_any_difference_intervals_are_exact_but_for_shares() -> None:
    draws = resampler(np.repeat(np.arange(20), 50))
    same = np.ones(1000)
    assert estimate_mean(0 * same, draws) == Estimate.exact(0.0, 1000)
    assert estimate_exponential_of_mean(0 * same, draws) == Estimate.exact(1.0, 1000)
    share = estimate_share(same, draws)
    assert share.value == share.high == 1
    assert 0.995 < share.low < 0.999  # a thousand tokens cannot promise more


def test_quantiles_hold_their_own_value() -> None:
    values = np.random.default_rng(0).exponential(1, 2000)
    found = estimate_quantile(values, 0.99, resampler(np.repeat(np.arange(20), 100)))
    assert found.low <= found.value <= found.high
    assert found.low < np.log(100) < found.high


def test_t_quantiles_against_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for freedom in (1, 2, 3, 4, 7, 12, 50, 999, 10_000):
        for p in (0.5, 0.9, 0.975, 0.9999):
            assert t_quantile(p, freedom) == pytest.approx(stats.t.ppf(p, freedom), rel=1e-9, abs=1e-12)
