"""McNemar's test, the interval and the detectable drop: by hand, against scipy, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.evaluate.statistics.paired_accuracy import (
    PairedAccuracy,
    binomial,
    detectable_drop,
    drop_interval,
    mcnemar,
    power,
)

PAIRS = 1000


def simulate(n: int, loss: float, gain: float, seed: int) -> NDArray[np.int64]:
    """`[PAIRS, 2]` counts of losses and gains of `PAIRS` pairs of models on `n` items."""
    return np.random.default_rng(seed).multinomial(n, [loss, gain, 1 - loss - gain], size=PAIRS)[:, :2]


def test_flips_are_counted_one_by_one() -> None:
    reference = np.array([1, 1, 1, 0, 0, 1], bool)
    candidate = np.array([1, 0, 0, 1, 0, 1], bool)
    found = PairedAccuracy.of(reference, candidate)
    assert (found.losses, found.gains, found.n) == (2, 1, 6)
    assert (found.reference_accuracy, found.accuracy) == (4 / 6, 0.5)
    assert found.drop == pytest.approx(found.reference_accuracy - found.accuracy)
    assert found.low < found.drop < found.high
    with pytest.raises(UsageError, match="6 and 5 items cannot be paired"):
        PairedAccuracy.of(reference, candidate[:5])


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (5, 0), (1, 9), (30, 12), (7, 7)])
def test_p_value_against_scipy(losses: int, gains: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    flips = stats.binom(losses + gains, 0.5)
    fewer = min(losses, gains)
    expected = min(1.0, 2 * (flips.cdf(fewer) - flips.pmf(fewer) / 2))
    assert mcnemar(losses, gains) == pytest.approx(expected, rel=1e-9)
    np.testing.assert_allclose(binomial(losses + gains, 0.3).sum(), 1)


def test_interval_has_the_closed_form_of_its_corners() -> None:
    # Without flips the score test stops rejecting where n drop^2 = z^2 drop (1 - drop) ... drop = z^2 / (n + z^2).
    z2 = 1.959964**2
    low, high = drop_interval(0, 0, 100)
    assert high == pytest.approx(z2 / (100 + z2), rel=1e-5)
    assert low == pytest.approx(-high)
    # It excludes 0 exactly when McNemar's asymptotic statistic passes 1.96.
    assert drop_interval(18, 6, 500)[0] > 0 > drop_interval(17, 7, 500)[0] - 1e-3
    assert drop_interval(30, 0, 30)[1] == pytest.approx(1)
    mirrored = drop_interval(6, 18, 500)
    assert drop_interval(18, 6, 500) == pytest.approx((-mirrored[1], -mirrored[0]), abs=1e-9)


@pytest.mark.parametrize(("n", "flips"), [(200, 0.05), (200, 0.15), (1000, 0.02), (1000, 0.10)])
def test_false_alarms_are_five_in_a_hundred(n: int, flips: float) -> None:
    counts = simulate(n, flips / 2, flips / 2, seed=3)
    alarms = np.mean([mcnemar(*map(int, pair)) <= 0.05 for pair in counts])
    assert 0.035 <= alarms <= 0.065


def test_with_few_expected_flips_it_rejects_rarely() -> None:
    counts = simulate(100, 0.015, 0.015, seed=1)
    assert np.mean([mcnemar(*map(int, pair)) <= 0.05 for pair in counts]) <= 0.02


@pytest.mark.parametrize(
    ("n", "flips", "drop"), [(200, 0.05, 0.02), (200, 0.10, 0.05), (1000, 0.05, 0.02), (1000, 0.1, 0.0)]
)
def test_interval_covers_the_true_drop(n: int, flips: float, drop: float) -> None:
    counts = simulate(n, (flips + drop) / 2, (flips - drop) / 2, seed=5)
    ends = np.array([drop_interval(*map(int, pair), n) for pair in counts])
    missed = (ends[:, 0] > drop) | (ends[:, 1] < drop)
    assert 0.035 <= missed.mean() <= 0.065
    # The gate: a true drop as large as the bound passes 2.5 % of the time.
    assert (ends[:, 1] < drop).mean() <= 0.04


@pytest.mark.parametrize(("n", "flips"), [(200, 0.05), (500, 0.1), (1000, 0.02)])
def test_the_stated_detectable_drop_is_detected(n: int, flips: float) -> None:
    pilots = simulate(n, flips / 2, flips / 2, seed=7)[:200]
    rng = np.random.default_rng(11)
    found = []
    stated = {int(count): detectable_drop(int(count), n) for count in set(pilots.sum(1))}
    for pilot in pilots:
        drop = stated[int(pilot.sum())]
        chances = [flips / 2 + drop, flips / 2, 1 - flips - drop]
        found += [mcnemar(int(a), int(b)) <= 0.05 for a, b, _ in rng.multinomial(n, chances, size=5)]
    assert 0.80 <= np.mean(found) <= 0.90


def test_power_is_a_sum_over_outcomes() -> None:
    counts = simulate(300, 0.07, 0.03, seed=13)
    simulated = np.mean([mcnemar(*map(int, pair)) <= 0.05 for pair in counts])
    assert power(0.04, 0.10, 300) == pytest.approx(simulated, abs=0.04)
    assert detectable_drop(0, 3) == 1.0  # three items can never show anything
    assert detectable_drop(20, 1000) < detectable_drop(20, 400)


def test_how_many_items_would_decide() -> None:
    few = PairedAccuracy.of(np.ones(200, bool), np.arange(200) >= 2)
    items = few.items_for(0.02)
    assert items is not None
    assert few.high > 0.02
    counts = simulate(items, few.losses / few.n, 0.0, seed=17)
    assert 0.75 <= np.mean([drop_interval(*map(int, pair), items)[1] <= 0.02 for pair in counts]) <= 0.97
    assert few.items_for(0.005) is None
