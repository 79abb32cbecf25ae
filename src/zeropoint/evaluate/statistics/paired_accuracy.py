"""Paired accuracy: the difference between two models' right and wrong answers to the same items.

Only flips tell the models apart. A *loss* is an item that only the reference model gets right; a *gain* is an item that
only the candidate gets right.

- **Test**: McNemar's test with the mid-p value (Lancaster, 1961). If the accuracies are equal, the number of losses is
  Binomial(flips, 1/2). With few flips, the exact test at level 5 % rejects far too rarely (2.2 % at 10 expected flips,
  2.9 % at 20), so it misses real losses. The mid-p value counts the observed outcome half and reaches 4.1 % and 4.6 %
  (recommended by Fagerland, Lydersen and Laake, BMC Med. Res. Methodol. 13:91, 2013). With few expected flips mid-p
  rejects rarely, too: 0.9 % at 3, 3.8 % at 8.
- **Interval** of the drop of accuracy: Tango's score interval (Stat. Med. 17, 1998). Its coverage is 95 % even for
  small samples, and its width is not zero when no item flips.
- **Gate**, "accuracy falls by no more than X": a non-inferiority test. The upper end of the interval must be at most X,
  so a true drop of X passes 2.5 % of the time. (The lack of a significant drop would prove nothing.)
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.evaluate.statistics.bootstrap import CONFIDENCE, POWER
from zeropoint.values.arrays import Doubles

_NORMAL = NormalDist()
_BISECTIONS = 50


@dataclass(frozen=True, slots=True)
class PairedAccuracy:
    """A candidate's accuracy against its reference model's, on the same `n` items.

    `losses` and `gains` count the flips. `drop` is the reference model's accuracy minus the candidate's, with the 95 %
    interval `[low, high]`. `p_value` is McNemar's, two-sided, mid-p. `detectable` is the smallest true drop that the
    test finds in 80 % of cases.
    """

    n: int
    reference_accuracy: float
    accuracy: float
    losses: int
    gains: int
    drop: float
    low: float
    high: float
    p_value: float
    detectable: float

    @classmethod
    def of(cls, reference: NDArray[np.bool_], candidate: NDArray[np.bool_]) -> PairedAccuracy:
        """Return the comparison of correctness on the same items, bool `[n]` each.

        Raises `UsageError` if the arrays are empty or differ in shape.
        """
        if reference.shape != candidate.shape or reference.ndim != 1 or reference.size == 0:
            raise UsageError(
                f"correctness of {reference.size} and {candidate.size} items cannot be paired one by one"
            )
        n = reference.size
        losses = int((reference & ~candidate).sum())
        gains = int((candidate & ~reference).sum())
        low, high = drop_interval(losses, gains, n)
        return cls(
            n,
            float(reference.mean()),
            float(candidate.mean()),
            losses,
            gains,
            (losses - gains) / n,
            low,
            high,
            mcnemar(losses, gains),
            detectable_drop(losses + gains, n),
        )

    def items_for(self, bound: float) -> int | None:
        """Return about how many items show with 80 % power that the drop is below `bound`.

        The drop and the share of flips are taken as measured. Return None if the measured drop is not below `bound`.
        """
        room = bound - self.drop
        if room <= 0:
            return None
        flips = (self.losses + self.gains + 1) / self.n
        factor = _normal(0.5 + CONFIDENCE / 2) + _normal(POWER)
        return math.ceil(factor**2 * max(flips - self.drop**2, 0.0) / room**2)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mcnemar(losses: int, gains: int) -> float:
    """Return the two-sided mid-p value of McNemar's test.

    The value is the probability of a split of the flips at least as uneven, with the observed split counted half.
    """
    return float(_mid_p(losses + gains)[losses])


@cache
def _mid_p(flips: int) -> Doubles:
    """Return the mid-p value for each number of losses, float64 `[flips + 1]`, read-only."""
    from scipy.stats import binom

    losses = np.arange(flips + 1)
    below = binom.cdf(losses, flips, 0.5) - binom.pmf(losses, flips, 0.5) / 2
    values: Doubles = np.minimum(2 * np.minimum(below, below[::-1]), 1.0)
    values.flags.writeable = False
    return values


@cache
def _critical(flips: int) -> int:
    """Return the largest number of losses, at most half the flips, at which the test is significant; -1 if none is."""
    return int((_mid_p(flips) <= 1 - CONFIDENCE).sum()) // 2 - 1


def drop_interval(losses: int, gains: int, n: int) -> tuple[float, float]:
    """Return Tango's 95 % score interval of `(losses - gains) / n`: the drops that the score test does not reject."""
    z, observed = _normal(0.5 + CONFIDENCE / 2), (losses - gains) / n

    def end(outside: float) -> float:
        """Return the end of the interval between the observed drop and `outside`, by bisection."""
        inside = observed
        for _ in range(_BISECTIONS):
            middle = (inside + outside) / 2
            if abs(_score(losses, gains, n, middle)) < z:
                inside = middle
            else:
                outside = middle
        return inside

    return end(-1.0), end(1.0)


def _score(losses: int, gains: int, n: int, drop: float) -> float:
    """Return the score of a true `drop`: its distance from the observed drop in standard errors.

    The probability of a gain is its maximum likelihood estimate under `drop`, the root of a quadratic (Tango's equation
    2.4).
    """
    linear = (2 * n - losses + gains) * drop - losses - gains
    root = math.sqrt(max(linear**2 + 8 * n * gains * drop * (1 - drop), 0.0))
    gain = (root - linear) / (4 * n)
    variance = n * max(2 * gain + drop * (1 - drop), 0.0)
    distance = losses - gains - n * drop
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def detectable_drop(flips: int, n: int) -> float:
    """Return the smallest true drop of accuracy that McNemar's test finds in 80 % of cases on `n` items; 1 if none is.

    Besides the drop, flips in both directions are assumed as often as observed. One flip is added to the observed
    number, because zero observed flips do not mean that flips never happen.
    """
    other = min((flips + 1) / n, 1.0)
    lower, upper = 0.0, 1.0
    if power(upper, 1.0, n) < POWER:
        return 1.0
    for _ in range(20):
        middle = (lower + upper) / 2
        if power(middle, min(other + middle, 1.0), n) < POWER:
            lower = middle
        else:
            upper = middle
    return upper


def power(drop: float, flips: float, n: int) -> float:
    """Return the probability that McNemar's test finds a true `drop` significant on `n` items.

    `flips` is the share of items that flip. The probability is a sum over outcomes, not a normal approximation.
    """
    from scipy.stats import binom

    counts = binomial(n, flips)
    lost = (1 + drop / flips) / 2
    likely = np.flatnonzero(counts > 1e-6)
    # About 50 evenly spaced numbers of flips of the likely range give the sum to 1e-3.
    step = max(likely.size // 50, 1)
    chosen = likely[::step]
    # The test is significant at few losses and, mirrored, at few gains.
    critical = np.array([_critical(int(k)) for k in chosen])
    found = binom.cdf(critical, chosen, lost) + binom.cdf(critical, chosen, 1 - lost)
    return float(counts[chosen] @ found / counts[chosen].sum())


def binomial(n: int, p: float) -> Doubles:
    """Return the binomial probabilities of 0 to `n` successes, float64 `[n + 1]`."""
    from scipy.stats import binom

    return np.asarray(binom.pmf(np.arange(n + 1), n, p))


def _normal(p: float) -> float:
    return _NORMAL.inv_cdf(p)
