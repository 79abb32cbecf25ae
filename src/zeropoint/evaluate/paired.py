"""Right or wrong on the same items: does a quantized model answer worse, and could these items have shown it?

An item that both models get right, or both wrong, says nothing about their difference. What counts are the flips:
`losses`, which the reference alone gets right, and `gains`, which the candidate alone gets right.

- **Test**: McNemar's, with the mid-p value (Lancaster, 1961). Given the flips, losses are Binomial(flips, 1/2) when
  nothing changed. The exact test rejects far less often than it says when flips are few (2.2 % at 10 expected flips,
  2.9 % at 20, where 5 % was meant), so it overlooks real losses; mid-p counts the observed outcome half and keeps to
  4.1 % and 4.6 % (Fagerland, Lydersen and Laake, BMC Med. Res. Methodol. 13:91, 2013, recommend it too). Below 8
  flips nothing keeps to 5 %; mid-p then errs towards silence (0.9 % at 3).
- **Interval** of the drop of accuracy: Tango's score interval (Stat. Med. 17, 1998), which holds its 95 % from small
  samples on, and does not shrink to nothing when no item flips.
- **Gate**, "accuracy falls by no more than X": non-inferiority. The upper end of the interval must not pass X, so a
  true drop of X passes 2.5 % of the time; having found no significant drop proves nothing.
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
from zeropoint.evaluate.statistics import CONFIDENCE, POWER

_NORMAL = NormalDist()
_BISECTIONS = 50

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class PairedAccuracy:
    """A candidate against its reference on `n` items. `drop` is the reference's accuracy less the candidate's, in
    `[low, high]` with 95 % confidence; `p_value` is McNemar's, two-sided, mid-p; a true drop of `detectable` would
    be found by that test 80 % of the time."""

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
        """From correctness on the same items, `[n]` each. Raises UsageError when they cannot be paired."""
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
        """About how many items would show the drop to be below `bound` 80 % of the time, if drop and flips stay as
        measured; None when the measured drop is not below it."""
        room = bound - self.drop
        if room <= 0:
            return None
        flips = (self.losses + self.gains + 1) / self.n
        factor = _normal(0.5 + CONFIDENCE / 2) + _normal(POWER)
        return math.ceil(factor**2 * max(flips - self.drop**2, 0.0) / room**2)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def mcnemar(losses: int, gains: int) -> float:
    """The two-sided mid-p value of McNemar's test: the chance of a split at least this uneven, the observed one
    counted half."""
    return float(_mid_p(losses + gains)[losses])


@cache
def _mid_p(flips: int) -> Floats:
    """The mid-p value for each number of losses, `[flips + 1]`."""
    chances = binomial(flips, 0.5)
    below = np.cumsum(chances) - chances / 2
    found: Floats = np.minimum(2 * np.minimum(below, below[::-1]), 1.0)
    found.flags.writeable = False
    return found


def drop_interval(losses: int, gains: int, n: int) -> tuple[float, float]:
    """Tango's 95 % score interval of `(losses - gains) / n`: all drops that the score test does not reject."""
    z, observed = _normal(0.5 + CONFIDENCE / 2), (losses - gains) / n

    def end(outside: float) -> float:
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
    """How many standard errors the observed drop is from `drop`, the chance of a gain being the likeliest one under it
    (the root of a quadratic; Tango's equation 2.4)."""
    linear = (2 * n - losses + gains) * drop - losses - gains
    root = math.sqrt(max(linear**2 + 8 * n * gains * drop * (1 - drop), 0.0))
    gain = (root - linear) / (4 * n)
    variance = n * max(2 * gain + drop * (1 - drop), 0.0)
    distance = losses - gains - n * drop
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def detectable_drop(flips: int, n: int) -> float:
    """The smallest true drop of accuracy that McNemar's test finds 80 % of the time on `n` items, when other flips, as
    often either way, stay as frequent as observed; 1 when nothing would be found.

    One flip is added to the observed ones: their number is uncertain too, and with none seen some must be allowed for.
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
    """The chance that McNemar's test calls a true `drop` significant on `n` items, of which a share `flips` flips:
    summed over all outcomes, not approximated."""
    counts = binomial(n, flips)
    lost = (1 + drop / flips) / 2
    likely = np.flatnonzero(counts > 1e-6)
    # Few hundred numbers of flips are likely even of thousands; every 50th of a wide range gives the sum to 1e-3.
    step = max(likely.size // 50, 1)
    chosen = likely[::step]
    found = sum(counts[k] * binomial(int(k), lost)[_mid_p(int(k)) <= 1 - CONFIDENCE].sum() for k in chosen)
    return float(found / counts[chosen].sum())


def binomial(n: int, p: float) -> Floats:
    """The chances of 0 to `n` successes, `[n + 1]`."""
    successes = np.arange(n + 1)
    if p <= 0 or p >= 1:
        return np.asarray(successes == (n if p >= 1 else 0), np.float64)
    steps = np.concatenate([[0.0], np.log(np.arange(1, n + 1))]).cumsum()  # logarithms of factorials
    logs = steps[n] - steps - steps[::-1] + successes * math.log(p) + (n - successes) * math.log1p(-p)
    return np.asarray(np.exp(logs))


def _normal(p: float) -> float:
    return _NORMAL.inv_cdf(p)
