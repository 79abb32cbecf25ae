"""From costs to the plan that meets a budget: an exact program on the tables, corrected by measuring.

Losses of single groups do not add up at low bits, so the program's answer is measured whole, the ratio of what was
measured to what the sum promised corrects the next answer, and exchanges of a few groups near the optimum are
measured too. Every accepted plan has been run from end to end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.fitting.cache import Known
from zeropoint.fitting.candidates import Candidates, Step
from zeropoint.fitting.loss import Loss, LossMeter
from zeropoint.planning.solver import QUANTITIES, Picks, Quantity, optimize
from zeropoint.values.budget import Budget

Floats = NDArray[np.float64]

#: The share of a bound on the loss that is planned for: the gate holds the upper end of an interval, on other text.
LOSS_MARGIN = 0.85
#: The same for speed, which is noisier than bytes.
SPEED_MARGIN = 0.97
#: Answers of the program that are measured before exchanges are tried.
ROUNDS = 5
#: The part of the target that is aimed at after an answer that loses too much, and of that after the next: corrections
#: alone come near the target from above.
AFTER_A_MISS = 0.97


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A plan that was measured: what the tables say it costs, and its loss."""

    picks: Picks
    nbytes: float
    decode: float
    prefill: float
    promised: float
    loss: Loss


def group_losses(candidates: Candidates, meter: LossMeter, *, windows: int, step: Step) -> Floats:
    """What each group adds to the mean KL in each format, `[groups, formats]`.

    The first quantized format is put into the 16-bit model one group at a time; narrower ones into the model that is
    in the first format, which reads several times faster, and less what that model loses.
    """
    groups, formats = len(candidates.groups), len(candidates.formats)
    losses = np.zeros((groups, formats))
    for column in range(1, formats):
        base = np.full(groups, 0 if column == 1 else 1, np.int64)
        floor = 0.0 if column == 1 else meter.measure(candidates.decoder(base), windows=windows).kl
        for row in range(groups):
            picks = base.copy()
            picks[row] = column
            found = meter.measure(
                candidates.decoder(picks), windows=max(1, windows // 2) if column == 1 else windows
            )
            losses[row, column] = max(found.kl - floor, 0.0) + losses[row, base[row]]
            step("measuring sensitivity", (column - 1 + row / groups) / (formats - 1))
    return losses


class Search:
    """Plans for one model under one budget. `measured` holds every plan that was run, in order."""

    def __init__(self, known: Known, candidates: Candidates, meter: LossMeter, *, step: Step) -> None:
        self.table = known.table
        self.measured: list[Point] = []
        self._candidates = candidates
        self._meter = meter
        self._step = step
        self._tried: dict[bytes, Point] = {}
        self._known = known.losses
        #: Whether a program ended at its limit of nodes, so that a better plan than the one found may exist.
        self.unproven = False

    def measure(self, picks: Picks) -> Point:
        """Run a plan, unless it was run before."""
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
        """What was measured before, for another budget, is not measured again."""
        key = picks.tobytes()
        if key not in self._known:
            self._known[key] = self._meter.measure(self._candidates.decoder(picks))
        return self._known[key]

    def predict(self, picks: Picks) -> float:
        """The expected mean KL of a plan: its promise times the ratio found at similar promises."""
        promised = self.table.total("loss", picks)
        return promised * self._ratio(promised)

    def limits(self, budget: Budget) -> dict[Quantity, float]:
        """The budget's bounds on what adds up exactly."""
        found: dict[Quantity, float] = {}
        if budget.max_memory is not None:
            found["nbytes"] = float(budget.max_memory)
        if budget.min_decode is not None:
            found["decode"] = SPEED_MARGIN / budget.min_decode
        if budget.min_prefill is not None:
            found["prefill"] = SPEED_MARGIN / budget.min_prefill
        return found

    def target(self, budget: Budget, margin: float = LOSS_MARGIN) -> float | None:
        """The mean KL to plan for. A bound on perplexity counts by the rise per KL of the plans measured so far."""
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
        """The best plan found within the budget, measured; None when the search finds none. `evaluations`: exchanges
        that are tried."""
        limits = self.limits(budget)
        misses = 0
        for _ in range(ROUNDS):
            bounds: dict[Quantity, float] = dict(limits)
            if target is not None:
                bounds["loss"] = self.promise(target * AFTER_A_MISS**misses)
            picks = self._solve(bounds, minimize)
            if picks is None:
                break
            seen = picks.tobytes() in self._tried
            found = self.measure(picks)
            self._step("measuring plans", 0.0)
            if target is None:
                break
            if found.loss.kl > target:
                misses += 1
            elif seen:
                break
        best = self._best_measured(limits, minimize, target)
        if target is not None and best is None:
            # The promise is too pessimistic, or the budget cannot be met: the lowest loss within the rest decides.
            picks = self._solve(limits, {"loss": 1.0})
            if picks is not None:
                self.measure(picks)
                best = self._best_measured(limits, minimize, target)
        return best if best is None else self._exchange(best, limits, minimize, target, evaluations)

    def _solve(self, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]) -> Picks | None:
        """The program's answer, and a note of whether it was proved to be the best."""
        found = optimize(self.table, limits, minimize)
        self.unproven |= found is not None and not found.optimal
        return None if found is None else found.picks

    def _best_measured(
        self, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float], target: float | None
    ) -> Point | None:
        """Of all plans that were run, whatever they were run for."""
        best: Point | None = None
        for point in self.measured:
            # the program keeps to its limits within rounding
            if all(getattr(point, name) <= most * (1 + 1e-9) for name, most in limits.items()):
                best = self._better(best, point, minimize, target)
        return best

    # -- what the tables do not know --------------------------------------------------------------

    def _ratio(self, promised: float) -> float:
        """Measured loss over promised loss, interpolated over the logarithm of the promise."""
        known = sorted(
            (p.promised, p.loss.kl / p.promised) for p in self.measured if p.promised > 0 < p.loss.kl
        )
        if not known or promised <= 0:
            return 1.0
        sums, ratios = np.array(known).T
        return float(np.exp(np.interp(np.log(promised), np.log(sums), np.log(ratios))))

    def promise(self, target: float) -> float:
        """The sum of losses at which `target` is expected."""
        low, high = 0.0, max(float(self.table.loss.max(axis=1).sum()), 1e-12)
        if high * self._ratio(high) <= target:
            return high
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if middle * self._ratio(middle) <= target else (low, middle)
        return low

    # -- exchanges --------------------------------------------------------------------------------

    def _better(
        self, best: Point | None, found: Point, minimize: Mapping[Quantity, float], target: float | None
    ) -> Point | None:
        if target is not None and found.loss.kl > target:
            return best
        if best is None or self._value(found, minimize) < self._value(best, minimize) - 1e-12:
            return found
        return best

    def _value(self, point: Point, minimize: Mapping[Quantity, float]) -> float:
        """What is minimized, as shares of the most; a loss is the measured one."""
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
        """The most promising plan not yet run that differs from `best` in one group or two."""
        table, rows = self.table, np.arange(len(best.picks))
        change = {
            name: getattr(table, name) - getattr(table, name)[rows, best.picks][:, None]
            for name in QUANTITIES
        }
        flat = {name: values.ravel() for name, values in change.items()}
        group, format = np.divmod(np.arange(flat["loss"].size), table.loss.shape[1])
        moved = np.flatnonzero(format != best.picks[group])
        first, second = (a.ravel() for a in np.meshgrid(moved, moved, indexing="ij"))
        keep = group[first] <= group[second]
        keep &= (group[first] < group[second]) | (first == second)
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
            # What is minimized must fall, for a loss that may still be within the target.
            scale = best.loss.kl / best.promised if best.promised > 0 else 1.0
            expected = best.loss.kl + scale * delta["loss"]
            allowed &= (rank < -1e-9) & (expected <= target * 1.02)
        for index in np.flatnonzero(allowed)[np.argsort(rank[allowed], kind="stable")][
            : len(self._tried) + 1
        ]:
            picks = best.picks.copy()
            for move in {int(first[index]), int(second[index])}:
                picks[group[move]] = format[move]
            if picks.tobytes() not in self._tried:
                return picks
        return None
