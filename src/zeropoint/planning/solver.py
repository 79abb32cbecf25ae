"""Choose a format for each group of layers: an integer program, solved exactly.

One binary variable says that group g gets format f; each group gets one; bytes, seconds and losses add up over the
groups and are bounded or minimized. HiGHS (Huangfu and Hall 2018) solves hundreds of groups in a fraction of a second.
Losses do not quite add up in a model: whoever calls this measures what comes out, and asks again.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError

Floats = NDArray[np.float64]
Picks = NDArray[np.int64]
Quantity = Literal["nbytes", "decode", "prefill", "loss"]

QUANTITIES: tuple[Quantity, ...] = ("nbytes", "decode", "prefill", "loss")

#: Weight of the quantities that are not minimized: they decide between plans that are equal otherwise.
TIE_BREAK = 1e-4

#: Nodes of the search tree at most. Programs of models take up to about a thousand; ten thousand take half a minute.
MOST_NODES = 10_000
#: scipy's statuses. Whatever else it says (limits, errors) is neither: then it matters whether a plan came with it.
OPTIMAL, INFEASIBLE = 0, 2
#: The program keeps to its limits within 1e-6 of them: when that shows, it is run once more with so much less.
SLACK = 2e-6
#: Prices tried by `_heuristic`.
PRICE_STEPS = 200


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """What each group costs in each format: arrays `[groups, formats]`, and what the rest of the model costs.

    `nbytes` of the weights; `decode` and `prefill` in seconds a token; `loss` in nats of mean KL, this group alone.
    """

    groups: tuple[str, ...]
    formats: tuple[str, ...]
    nbytes: Floats
    decode: Floats
    prefill: Floats
    loss: Floats
    fixed_nbytes: float = 0.0

    def total(self, quantity: Quantity, picks: Picks) -> float:
        """Of a plan: `picks` `[groups]` are format numbers."""
        values: Floats = getattr(self, quantity)
        return float(values[np.arange(len(picks)), picks].sum()) + self.fixed(quantity)

    def fixed(self, quantity: Quantity) -> float:
        """What is the same in every plan."""
        return self.fixed_nbytes if quantity == "nbytes" else 0.0

    def least(self, quantity: Quantity) -> float:
        """The least that any plan costs of this quantity alone."""
        values: Floats = getattr(self, quantity)
        return float(values.min(axis=1).sum()) + self.fixed(quantity)

    def uniform(self, format: str) -> Picks:
        return np.full(len(self.groups), self.formats.index(format), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A plan that meets the limits. `optimal`: the program proved that none is better."""

    picks: Picks
    optimal: bool


def solve(
    table: CostTable, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]
) -> Picks | None:
    """The picks of `optimize`, `[groups]`; None when no plan meets the limits. Raises as `optimize` does."""
    found = optimize(table, limits, minimize)
    return None if found is None else found.picks


def optimize(
    table: CostTable, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]
) -> Solution | None:
    """Find the best format for each group; None only when it is proved that no plan meets the limits.

    `minimize` weighs quantities against each other, each as a share of the most that any plan could cost.
    Groups with equal costs are told apart by their order, so that equal tables give equal plans. The work is bounded
    by a number of nodes, never by seconds, so that a slow machine gives the same plan as a fast one.

    Raises `UnsupportedError` for costs that are not finite, and when the program ends without a plan and without a
    proof that there is none.
    """
    _check(table, limits)
    scaled = {name: _scaled(table, name) for name in QUANTITIES}
    objective = sum(minimize.get(name, TIE_BREAK) * values for name, values in scaled.items())
    objective = np.asarray(objective)
    if any(table.least(name) > _room(most) for name, most in limits.items()):
        return None
    for slack in (0.0, SLACK):
        picks, status, message = _program(table, limits, objective, slack)
        if picks is not None and _fits(table, limits, picks):
            return Solution(picks, optimal=status == OPTIMAL)
        if (
            status == INFEASIBLE and not slack and len(limits) > 1
        ):  # one limit alone is met by the least of it
            return None
        if picks is None:
            break
    picks = _heuristic(table, limits, objective)
    if picks is None:
        raise UnsupportedError(
            f"the program of {len(table.groups)} groups and {len(table.formats)} formats found no plan and no proof "
            f"that there is none ({message}): name fewer formats, or loosen a bound"
        )
    return Solution(picks, optimal=False)


def _check(table: CostTable, limits: Mapping[Quantity, float]) -> None:
    """Raise `UnsupportedError` for a cost or a limit that is no number: HiGHS calls such a program infeasible."""
    for name in QUANTITIES:
        bad = np.argwhere(~np.isfinite(getattr(table, name)))
        if len(bad):
            row, column = bad[0]
            raise UnsupportedError(
                f"the {name} of {table.groups[row]} as {table.formats[column]} is not a finite number: "
                "leave that format out, or measure again"
            )
    for name, most in limits.items():
        if np.isnan(most):
            raise UnsupportedError(f"the limit on {name} is not a number")


def _program(
    table: CostTable, limits: Mapping[Quantity, float], objective: Floats, slack: float
) -> tuple[Picks | None, int, str]:
    """What HiGHS finds: the best plan so far, the status, and what it says in words. `slack` is kept of each limit."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups, formats = table.nbytes.shape
    constraints = [LinearConstraint(np.kron(np.eye(groups), np.ones(formats)), 1, 1)]
    for name, most in limits.items():
        values: Floats = getattr(table, name)
        scale = max(abs(most), 1e-12)
        left = (most - table.fixed(name)) / scale - slack
        constraints.append(LinearConstraint(values.ravel()[None] / scale, -np.inf, left))
    with _standard_output_closed():
        found = milp(
            objective.ravel(),
            integrality=np.ones(groups * formats),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-6, "node_limit": MOST_NODES},
        )
    picks = None if found.x is None else found.x.reshape(groups, formats).argmax(axis=1)
    return picks, int(found.status), " ".join(str(found.message).split())


def _heuristic(table: CostTable, limits: Mapping[Quantity, float], objective: Floats) -> Picks | None:
    """A plan that meets the limits, without the program: prices on the limits that rise while they are exceeded, then
    the best change of one group at a time. None when no prices meet all limits, which proves nothing."""
    picks = next((tried for tried in _priced(table, limits, objective) if _fits(table, limits, tried)), None)
    rows = np.arange(len(table.groups))
    while picks is not None:
        gain = objective - objective[rows, picks][:, None]
        allowed = gain < -1e-12
        for name, most in limits.items():
            values: Floats = getattr(table, name)
            change = values - values[rows, picks][:, None]
            allowed &= table.total(name, picks) + change <= _room(most)
        if not allowed.any():
            break
        row, column = np.unravel_index(int(np.where(allowed, gain, np.inf).argmin()), gain.shape)
        picks[row] = column
    return picks


def _priced(table: CostTable, limits: Mapping[Quantity, float], objective: Floats) -> Iterator[Picks]:
    """The cheapest plans while the prices of exceeded limits rise, then the least of each limited quantity."""
    shares: dict[Quantity, Floats] = {
        name: getattr(table, name) / max(abs(most), 1e-12) for name, most in limits.items()
    }
    prices = dict.fromkeys(limits, 1.0)
    for _ in range(PRICE_STEPS):
        costs = objective * TIE_BREAK + sum(prices[name] * shares[name] for name in limits)
        picks = np.asarray(np.asarray(costs).argmin(axis=1), np.int64)
        yield picks
        for name, most in limits.items():
            prices[name] *= (table.total(name, picks) / most) ** 2 if most > 0 else 2.0
    yield from (np.asarray(share.argmin(axis=1), np.int64) for share in shares.values())


def _fits(table: CostTable, limits: Mapping[Quantity, float], picks: Picks) -> bool:
    return all(table.total(name, picks) <= _room(most) for name, most in limits.items())


def _room(most: float) -> float:
    """A limit, and what adding numbers up in another order may change."""
    return most + 1e-9 * abs(most)


@contextmanager
def _standard_output_closed() -> Iterator[None]:
    """HiGHS prints a line when it mends a rounded solution, whatever its options say."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _scaled(table: CostTable, name: str) -> Floats:
    values: Floats = getattr(table, name)
    most = values.max(axis=1).sum()
    return values / most if most > 0 else values
