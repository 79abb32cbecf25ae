"""Bounds of the gate: their defaults, and the comparison of measured intervals with bounds.

The ends of the intervals, `low` and `high`, come from evaluate/statistics/bootstrap.py for the metrics of a text, and
from evaluate/statistics/paired_accuracy.py for the accuracy on tasks.

If the caller gives no bound, the defaults of the table apply. The row is chosen by the bits of the artifact's
narrowest weight format (`smallest_bits` in evaluate/model_description.py). The default bounds mean "still the same
model". On SmolLM2-135M (benchmarks/results/quality.md), the presets int8 and int5 meet them with `rtn`. The preset int4
meets them with `gptq`; with `rtn`, 4 bits meet them only with a zero_point per group of 32. Large models stay well
inside the bounds.

    ======  =============  ===================
    bits    max mean KL    max perplexity rise
    ======  =============  ===================
    9-32    0.005          0.5 %
    8       0.03           3 %
    5-7     0.10           10 %
    4       0.25           25 %
    2-3     0.50           60 %
    ======  =============  ===================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from zeropoint.errors import UsageError
from zeropoint.evaluate.tasks.accuracy import TaskRequest, TaskResult

# (widest bits of the row, max mean KL in nats, max relative rise of perplexity)
DEFAULT_BOUNDS = ((3, 0.50, 0.60), (4, 0.25, 0.25), (7, 0.10, 0.10), (8, 0.03, 0.03), (32, 0.005, 0.005))

#: Metric -> its name in a sentence.
_WORDS = {
    "kl_divergence": "mean KL divergence",
    "perplexity_increase": "relative increase of perplexity",
    "top1_agreement": "top-1 agreement",
    "accuracy_drop": "drop of accuracy on",
}


def _words(metric: str) -> str:
    """Return a metric's name in words, followed by the task if there is one (`accuracy_drop TASK`)."""
    name, _, task = metric.partition(" ")
    return f"{_WORDS.get(name, name)} {task}".rstrip()


@dataclass(frozen=True, slots=True)
class BoundResult:
    """One bound and the measured value. The interval must lie on the `direction` side of `bound`."""

    metric: str
    direction: Literal["below", "above"]
    bound: float
    value: float
    low: float
    high: float
    passed: bool
    detectable: float
    """The smallest true change of the metric that a text or task of this size detects in 80 % of cases."""
    remedy: str = "the text is too short to decide"
    """Why this text or task cannot decide, and what would; printed if the bound lies inside the interval."""

    @property
    def undecided(self) -> bool:
        """Return whether the bound lies inside the interval, so that more text could decide either way."""
        return not self.passed and self.low < self.bound < self.high

    def sentence(self) -> str:
        """Return the result as a sentence, with numbers in the metric's own unit."""
        end = "upper" if self.direction == "below" else "lower"
        limit = self.high if self.direction == "below" else self.low
        state = "meets" if self.passed else "misses"
        tail = f"; {self.remedy}" if self.undecided else ""
        return (
            f"{_words(self.metric)} {self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g}): "
            f"its {end} end {limit:.4g} "
            f"{state} the bound {self.bound:.4g}{tail}"
        )


def default_bounds(bits: int) -> tuple[float, float]:
    """Return the default bounds (mean KL in nats, relative perplexity rise); `bits`: bits of the narrowest weight."""
    return next((kl, rise) for widest, kl, rise in DEFAULT_BOUNDS if bits <= widest)


def judge(
    entry: Mapping[str, Any],
    *,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_top1: float | None = None,
) -> tuple[BoundResult, ...]:
    """Return one result for each bound that is not None.

    `entry` is what the worker measured for the artifact. It maps `kl_divergence`, `perplexity_ratio` and
    `top1_agreement` to `{"value", "low", "high", "detectable", ...}` (`Estimate.to_json` in statistics/bootstrap.py).
    """
    rows: list[BoundResult] = []

    def add(
        metric: str,
        estimate: Mapping[str, float],
        bound: float | None,
        direction: Literal["below", "above"],
        shift: float,
    ) -> None:
        """Append the result of one bound; `shift` is subtracted from the estimate."""
        if bound is None:
            return
        value, low, high = (estimate[key] - shift for key in ("value", "low", "high"))
        passed = high <= bound if direction == "below" else low >= bound
        rows.append(BoundResult(metric, direction, bound, value, low, high, passed, estimate["detectable"]))

    add("kl_divergence", entry["kl_divergence"], max_kl, "below", 0.0)
    add("perplexity_increase", entry["perplexity_ratio"], max_perplexity_increase, "below", 1.0)
    add("top1_agreement", entry["top1_agreement"], min_top1, "above", 0.0)
    return tuple(rows)


def judge_accuracy(tasks: Sequence[TaskResult], bound: float | None) -> tuple[BoundResult, ...]:
    """Return one non-inferiority result per task.

    A task passes if the upper end of the interval of its accuracy drop is at most `bound`.
    The gate passes only if every task meets the bound, so more tasks do not make a wrong pass more likely.
    """
    if bound is None:
        return ()
    rows = []
    for task in tasks:
        paired = task.paired
        needed = paired.items_for(bound)
        remedy = f"{paired.n} items are too few to decide" + (f", about {needed} would" if needed else "")
        passed = paired.high <= bound
        rows.append(
            BoundResult(
                f"accuracy_drop {task.task}",
                "below",
                bound,
                paired.drop,
                paired.low,
                paired.high,
                passed,
                paired.detectable,
                remedy,
            )
        )
    return tuple(rows)


def check_accuracy_bound(max_accuracy_drop: float | None, tasks: TaskRequest | None) -> None:
    """Raise `UsageError` if the bound is out of range or there are no tasks to measure accuracy on."""
    if max_accuracy_drop is None:
        return
    if tasks is None:
        raise UsageError("a bound on the drop of accuracy needs tasks to measure it on")
    if not 0 < max_accuracy_drop < 1:
        raise UsageError(
            f"the bound on the drop of accuracy is a share between 0 and 1, not {max_accuracy_drop}"
        )


def check_bounds(max_kl: float | None, max_perplexity_increase: float | None, min_top1: float | None) -> None:
    """Raise `UsageError` if a bound is out of range."""
    if max_kl is not None and not max_kl > 0:
        raise UsageError(f"the bound on mean KL must be above 0 nats, not {max_kl}")
    if max_perplexity_increase is not None and not max_perplexity_increase > 0:
        raise UsageError(
            f"the bound on the rise of perplexity must be above 0, not {max_perplexity_increase}"
        )
    if min_top1 is not None and not 0 < min_top1 <= 1:
        raise UsageError(f"the bound on top-1 agreement is a share between 0 and 1, not {min_top1}")
