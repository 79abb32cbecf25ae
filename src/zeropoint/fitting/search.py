"""The search for the best plan within a budget: an integer program over the cost tables, corrected by measuring.

A plan gives each group a format. A group is a set of layers that must have the same format, because they share an
input or a weight (`candidates.py`). It is not a group of weights that share a scale.

At low bits the loss of a plan is not the sum of its groups' losses. So the whole model is run for every plan that the
integer program returns, and the ratio of measured loss to summed loss corrects the next program. Then plans that
differ from the best one in one or two groups are measured too. Every returned plan has been run from end to end.

Every loss in this file is a mean KL from the 16-bit model, in nats per token. A plan has three losses. Its *promised*
loss is the sum of its groups' losses in the table. Its *expected* loss (`predict`) is the promised loss times the
correcting ratio. Its *measured* loss comes from running the plan. `largest_promised_loss` inverts `predict`: given a
target, it returns the largest promised loss whose expected loss is at most the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from zeropoint.fitting.cache import Known
from zeropoint.fitting.candidates import Candidates
from zeropoint.fitting.loss import Loss, LossMeter
from zeropoint.planning.solver import QUANTITIES, Picks, Quantity, optimize
from zeropoint.progress import Progress
from zeropoint.values.arrays import Doubles
from zeropoint.values.budget import Budget

#: Share of the loss bound to plan for. It is below 1, because the gate measures on other text, and compares the upper
#: end of an interval.
LOSS_MARGIN = 0.85
#: Share of the time bound to plan for: timings are noisy.
SPEED_MARGIN = 0.97
#: Maximum number of runs of the integer program with a corrected loss bound. Exchanges of one or two groups follow.
ROUNDS = 5
#: Factor on the loss target after each measured plan that misses the target. Without it, successive plans would
#: approach the target without ever meeting it.
AFTER_A_MISS = 0.97


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A measured plan: its costs by the tables, and its measured loss.

    `decode` and `prefill` are seconds per token. `promised` is the sum of the groups' losses in the table, `loss` is
    measured.
    """

    picks: Picks
    nbytes: float
    decode: float
    prefill: float
    promised: float
    loss: Loss


def group_losses(candidates: Candidates, meter: LossMeter, *, windows: int, step: Progress) -> Doubles:
    """Return the mean KL that each group alone adds in each format, float64 `[groups, formats]`, in nats per token.

    For group g and format f:

    - `losses[g, 0]` (16 bits) is 0;
    - `losses[g, 1]` (the first quantized format) is the KL from the 16-bit model to the same model with g in format 1;
    - for f > 1, `losses[g, f]` is `losses[g, 1]` plus the rise of the base's KL when g moves from format 1 to f. (If it
      falls, 0 is added.) The base is the whole model in format 1, which runs faster than the 16-bit model.
    """
    groups, formats = len(candidates.groups), len(candidates.formats)
    losses = np.zeros((groups, formats))
    for column in range(1, formats):
        base = np.full(groups, 0 if column == 1 else 1, np.int64)
        floor = 0.0 if column == 1 else meter.measure(candidates.decoder(base), windows=windows).kl
        for row in range(groups):
            picks = base.copy()
            picks[row] = column
            # Format 1 is measured in the 16-bit model, which is slow, so half the windows must do.
            loss = meter.measure(
                candidates.decoder(picks), windows=max(1, windows // 2) if column == 1 else windows
            )
            losses[row, column] = max(loss.kl - floor, 0.0) + losses[row, base[row]]
            step("measuring sensitivity", (column - 1 + row / groups) / (formats - 1))
    return losses


class Search:
    """The search for plans of one model. `measured` holds every plan that `measure` returned, once, in order."""

    def __init__(self, known: Known, candidates: Candidates, meter: LossMeter, *, step: Progress) -> None:
        self.table = known.table
        self.measured: list[Point] = []
        self._candidates = candidates
        self._meter = meter
        self._step = step
        self._tried: dict[bytes, Point] = {}
        #: Losses by the bytes of `picks`, from this and earlier searches.
        self._losses = known.losses
        #: Whether an integer program stopped before it proved its plan the best, so that a better plan may exist.
        self.unproven = False

    def measure(self, picks: Picks) -> Point:
        """Return the measured plan `picks` `[groups]` (format numbers); run it unless it was measured before."""
        key = picks.tobytes()
        if key not in self._tried:
            total = self.table.total
            self._tried[key] = Point(
                picks,
                total("nbytes", picks),
                total("decode", picks),
                total("prefill", picks),
                total("loss", picks),
                self._loss(picks),
            )
            self.measured.append(self._tried[key])
        return self._tried[key]

    def _loss(self, picks: Picks) -> Loss:
        """Return the measured loss of a plan; run the plan unless this or an earlier search has run it."""
        key = picks.tobytes()
        if key not in self._losses:
            self._losses[key] = self._meter.measure(self._candidates.decoder(picks))
        return self._losses[key]

    def predict(self, picks: Picks) -> float:
        """Return the expected mean KL of a plan: the promised loss (the sum of its groups' losses) times `_ratio`."""
        promised = self.table.total("loss", picks)
        return promised * self._ratio(promised)

    def limits(self, budget: Budget) -> dict[Quantity, float]:
        """Return the budget's bounds on the quantities that are sums over the groups: bytes and seconds per token."""
        limits: dict[Quantity, float] = {}
        if budget.max_memory is not None:
            limits["nbytes"] = float(budget.max_memory)
        if budget.min_decode is not None:
            limits["decode"] = SPEED_MARGIN / budget.min_decode
        if budget.min_prefill is not None:
            limits["prefill"] = SPEED_MARGIN / budget.min_prefill
        return limits

    def target(self, budget: Budget, margin: float = LOSS_MARGIN) -> float | None:
        """Return the mean KL to plan for; None if the budget does not bound the loss.

        A bound on perplexity becomes a bound on KL: it is divided by the steepest rise of perplexity per nat of KL
        among the plans measured so far.
        """
        bounds = []
        if budget.max_kl is not None:
            bounds.append(budget.max_kl)
        if budget.max_perplexity_increase is not None:
            slopes = [p.loss.perplexity_increase / p.loss.kl for p in self.measured if p.loss.kl > 1e-4]
            bounds.append(budget.max_perplexity_increase / max([*slopes, 1e-3]))
        return min(bounds) * margin if bounds else None

    def best(
        self,
        budget: Budget,
        minimize: Mapping[Quantity, float],
        target: float | None,
        *,
        evaluations: int,
    ) -> Point | None:
        """Search, and return the measured plan with the smallest objective within the budget; None if there is none.

        `minimize` holds the weights of the quantities in the objective. `target` bounds the measured mean KL (None: no
        bound). At most `evaluations` exchanges are measured: plans that differ from the best in one or two groups.
        """
        limits = self.limits(budget)
        misses = 0
        for _ in range(ROUNDS):
            bounds: dict[Quantity, float] = dict(limits)
            if target is not None:
                bounds["loss"] = self.largest_promised_loss(target * AFTER_A_MISS**misses)
            picks = self._solve(bounds, minimize)
            if picks is None:
                break
            is_repeat = picks.tobytes() in self._tried
            point = self.measure(picks)
            self._step("measuring plans", 0.0)
            if target is None:
                break
            if point.loss.kl > target:
                misses += 1
            elif is_repeat:
                break
        best = self._best_measured(limits, minimize, target)
        if target is not None and best is None:
            # Either the expected losses are too high, or the budget cannot be met. The plan of the lowest loss
            # within the bounds on size and speed decides which.
            picks = self._solve(limits, {"loss": 1.0})
            if picks is not None:
                self.measure(picks)
                best = self._best_measured(limits, minimize, target)
        return best if best is None else self._exchange(best, limits, minimize, target, evaluations)

    def _solve(self, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]) -> Picks | None:
        """Return the integer program's plan, and set `unproven` if the program did not prove the plan the best."""
        solution = optimize(self.table, limits, minimize)
        self.unproven |= solution is not None and not solution.optimal
        return None if solution is None else solution.picks

    def _best_measured(
        self, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float], target: float | None
    ) -> Point | None:
        """Return the best of all measured plans that meets the limits and the target."""
        best: Point | None = None
        for point in self.measured:
            # the integer program meets its limits only within rounding
            if all(getattr(point, name) <= most * (1 + 1e-9) for name, most in limits.items()):
                best = self._better(best, point, minimize, target)
        return best

    # -- correction of summed losses ---------------------------------------------------------------

    def _ratio(self, promised: float) -> float:
        """Return measured / promised loss at `promised`, interpolated between measured plans on logarithmic axes."""
        ratios_by_sum = sorted(
            (p.promised, p.loss.kl / p.promised) for p in self.measured if p.promised > 0 < p.loss.kl
        )
        if not ratios_by_sum or promised <= 0:
            return 1.0
        sums, ratios = np.array(ratios_by_sum).T
        return float(np.exp(np.interp(np.log(promised), np.log(sums), np.log(ratios))))

    def largest_promised_loss(self, target: float) -> float:
        """Return the largest promised loss at which the expected mean KL is at most `target`."""
        low, high = 0.0, max(float(self.table.loss.max(axis=1).sum()), 1e-12)
        if high * self._ratio(high) <= target:
            return high
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if middle * self._ratio(middle) <= target else (low, middle)
        return low

    # -- exchanges --------------------------------------------------------------------------------

    def _better(
        self, best: Point | None, point: Point, minimize: Mapping[Quantity, float], target: float | None
    ) -> Point | None:
        """Return `point` if it meets the target and has a smaller objective than `best`, else `best`."""
        if target is not None and point.loss.kl > target:
            return best
        if best is None or self._value(point, minimize) < self._value(best, minimize) - 1e-12:
            return point
        return best

    def _value(self, point: Point, minimize: Mapping[Quantity, float]) -> float:
        """Return the objective: the weighted sum of quantities, each divided by its maximum over all plans.

        The loss in the sum is the measured one.
        """
        own = {
            "nbytes": point.nbytes,
            "decode": point.decode,
            "prefill": point.prefill,
            "loss": point.loss.kl,
        }
        return sum(
            weight * own[name] / max(float(getattr(self.table, name).max(axis=1).sum()), 1e-12)
            for name, weight in minimize.items()
        )

    def _exchange(
        self,
        best: Point,
        limits: Mapping[Quantity, float],
        minimize: Mapping[Quantity, float],
        target: float | None,
        evaluations: int,
    ) -> Point:
        """Measure up to `evaluations` neighbours of the best plan and return the best plan."""
        for number in range(evaluations):
            picks = self._next(best, limits, minimize, target)
            if picks is None:
                break
            best = self._better(best, self.measure(picks), minimize, target) or best
            self._step("trying exchanges", (number + 1) / evaluations)
        return best

    def _next(
        self,
        best: Point,
        limits: Mapping[Quantity, float],
        minimize: Mapping[Quantity, float],
        target: float | None,
    ) -> Picks | None:
        """Return the best-ranked plan not yet measured that differs from `best` in one or two groups, or None."""
        table, rows = self.table, np.arange(len(best.picks))
        change = {
            name: getattr(table, name) - getattr(table, name)[rows, best.picks][:, None]
            for name in QUANTITIES
        }
        flat = {name: values.ravel() for name, values in change.items()}
        group, format = np.divmod(np.arange(flat["loss"].size), table.loss.shape[1])
        moved = np.flatnonzero(format != best.picks[group])
        first, second = (a.ravel() for a in np.meshgrid(moved, moved, indexing="ij"))
        # A move gives one group another format. Each plan to rank is a pair of moves in two different groups, or one
        # move m, written as the pair (m, m). Of the pairs (a, b) and (b, a), which are the same plan, one is kept.
        keep = (group[first] < group[second]) | (first == second)
        first, second = first[keep], second[keep]
        both = (first != second).astype(float)
        delta = {name: values[first] + both * values[second] for name, values in flat.items()}
        allowed = np.ones(len(first), bool)
        for name, most in limits.items():
            allowed &= table.total(name, best.picks) + delta[name] <= most
        gain = sum(
            weight * delta[name] / max(float(getattr(table, name).max(axis=1).sum()), 1e-12)
            for name, weight in minimize.items()
        )
        rank = np.asarray(gain)
        if target is not None:
            # The objective must fall, and the expected loss may exceed the target by at most 2 %.
            scale = best.loss.kl / best.promised if best.promised > 0 else 1.0
            expected = best.loss.kl + scale * delta["loss"]
            allowed &= (rank < -1e-9) & (expected <= target * 1.02)
        # Only len(_tried) plans have been run, so a new one, if any, is among the first len(_tried) + 1.
        for index in np.flatnonzero(allowed)[np.argsort(rank[allowed], kind="stable")][
            : len(self._tried) + 1
        ]:
            picks = best.picks.copy()
            for move in {int(first[index]), int(second[index])}:
                picks[group[move]] = format[move]
            if picks.tobytes() not in self._tried:
                return picks
        return None
