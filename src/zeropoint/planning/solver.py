"""Integer program that chooses one format for each group of layers.

One binary variable per group g and format f says whether g gets f; each group gets exactly one format. Bytes, seconds
and losses are sums over the groups; each is bounded or minimized. HiGHS (Huangfu and Hall 2018) solves programs of
hundreds of groups in a fraction of a second. In a real model losses are not exactly additive, so the caller measures
the resulting plan and solves again with a corrected bound.
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
from zeropoint.values.arrays import Doubles

Picks = NDArray[np.int64]
Quantity = Literal["nbytes", "decode", "prefill", "loss"]

QUANTITIES: tuple[Quantity, ...] = ("nbytes", "decode", "prefill", "loss")

#: Weight in the objective of the quantities that are not minimized: they decide between otherwise equal plans.
TIE_BREAK = 1e-4

#: Limit on the nodes of the search tree. Models need up to about a thousand; ten thousand take half a minute.
MOST_NODES = 10_000
#: Statuses of `scipy.optimize.milp`. With any other status (limits, errors) a plan may or may not be returned.
OPTIMAL, INFEASIBLE = 0, 2
#: HiGHS may exceed a limit by a relative 1e-6. If it does, it runs again with limits lowered by this share.
SLACK = 2e-6
#: Number of price updates that `_priced` tries.
PRICE_STEPS = 200


@dataclass(frozen=True, slots=True, eq=False)
class CostTable:
    """The cost of each group in each format: float64 arrays `[groups, formats]`.

    - `nbytes`: bytes of the group's weights; `fixed_nbytes`: bytes of the rest of the model;
    - `decode`, `prefill`: seconds per token;
    - `loss`: mean KL divergence in nats per token with this group alone quantized.
    """

    groups: tuple[str, ...]
    formats: tuple[str, ...]
    nbytes: Doubles
    decode: Doubles
    prefill: Doubles
    loss: Doubles
    fixed_nbytes: float = 0.0

    def total(self, quantity: Quantity, picks: Picks) -> float:
        """Return the total of one quantity for a plan; `picks` int64 `[groups]` are format numbers."""
        values: Doubles = getattr(self, quantity)
        return float(values[np.arange(len(picks)), picks].sum()) + self.fixed(quantity)

    def fixed(self, quantity: Quantity) -> float:
        """Return the part of a quantity that is the same in every plan."""
        return self.fixed_nbytes if quantity == "nbytes" else 0.0

    def least(self, quantity: Quantity) -> float:
        """Return the smallest total of one quantity over all plans."""
        values: Doubles = getattr(self, quantity)
        return float(values.min(axis=1).sum()) + self.fixed(quantity)

    def uniform(self, format: str) -> Picks:
        return np.full(len(self.groups), self.formats.index(format), np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Solution:
    """A plan that meets the limits; `optimal` says that HiGHS proved that no plan is better."""

    picks: Picks
    optimal: bool


def solve(
    table: CostTable, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]
) -> Picks | None:
    """Return the picks int64 `[groups]` of `optimize`, or None if no plan meets the limits. Raises as `optimize`."""
    solution = optimize(table, limits, minimize)
    return None if solution is None else solution.picks


def optimize(
    table: CostTable, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]
) -> Solution | None:
    """Return the best format for each group, or None if it is proved that no plan meets the limits.

    `limits` holds upper bounds of quantities. `minimize` holds the weights of quantities in the objective; each
    quantity is divided by the largest total that any plan could have. The work is bounded by a number of nodes, not by
    seconds, so equal tables give equal plans on fast and slow machines.

    Raises `UnsupportedError` if a cost is not finite or a limit is NaN, and if no plan is found but none is ruled out.
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
        # With a single limit a plan exists (checked above), so an "infeasible" there is a rounding error of HiGHS.
        if status == INFEASIBLE and not slack and len(limits) > 1:
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
    """Raise `UnsupportedError` for a cost that is not finite or a limit that is NaN: HiGHS would say infeasible."""
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
    table: CostTable, limits: Mapping[Quantity, float], objective: Doubles, slack: float
) -> tuple[Picks | None, int, str]:
    """Solve with HiGHS; return the best plan found (or None), the status and the message.

    Each limit is lowered by the relative amount `slack`.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups, formats = table.nbytes.shape
    constraints = [LinearConstraint(np.kron(np.eye(groups), np.ones(formats)), 1, 1)]
    for name, most in limits.items():
        values: Doubles = getattr(table, name)
        scale = max(abs(most), 1e-12)
        upper = (most - table.fixed(name)) / scale - slack
        constraints.append(LinearConstraint(values.ravel()[None] / scale, -np.inf, upper))
    with _standard_output_closed():
        result = milp(
            objective.ravel(),
            integrality=np.ones(groups * formats),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-6, "node_limit": MOST_NODES},
        )
    picks = None if result.x is None else result.x.reshape(groups, formats).argmax(axis=1)
    return picks, int(result.status), " ".join(str(result.message).split())


def _heuristic(table: CostTable, limits: Mapping[Quantity, float], objective: Doubles) -> Picks | None:
    """Return a plan that meets the limits without HiGHS, or None if none was found (which proves nothing).

    Takes the first plan of `_priced` that meets the limits, then makes the best change of one group at a time.
    """
    picks = next((plan for plan in _priced(table, limits, objective) if _fits(table, limits, plan)), None)
    rows = np.arange(len(table.groups))
    while picks is not None:
        gain = objective - objective[rows, picks][:, None]
        allowed = gain < -1e-12
        for name, most in limits.items():
            values: Doubles = getattr(table, name)
            change = values - values[rows, picks][:, None]
            allowed &= table.total(name, picks) + change <= _room(most)
        if not allowed.any():
            break
        row, column = np.unravel_index(int(np.where(allowed, gain, np.inf).argmin()), gain.shape)
        picks[row] = column
    return picks


def _priced(table: CostTable, limits: Mapping[Quantity, float], objective: Doubles) -> Iterator[Picks]:
    """Yield plans that may meet the limits: Lagrangian relaxation, where the price of each exceeded limit rises.

    The last plans are those with the smallest total of each limited quantity.
    """
    shares: dict[Quantity, Doubles] = {
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
    """Return whether a plan meets all limits."""
    return all(table.total(name, picks) <= _room(most) for name, most in limits.items())


def _room(most: float) -> float:
    """Return a limit plus a tolerance for the rounding errors of sums."""
    return most + 1e-9 * abs(most)


@contextmanager
def _standard_output_closed() -> Iterator[None]:
    """Discard writes to file descriptor 1: HiGHS prints a line when it repairs a rounded solution, despite options."""
    sys.stdout.flush()
    saved_stdout, devnull = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(devnull, 1)
        yield
    finally:
        os.dup2(saved_stdout, 1)
        os.close(saved_stdout)
        os.close(devnull)


def _scaled(table: CostTable, name: str) -> Doubles:
    """Return one quantity divided by the largest total that any plan could have."""
    values: Doubles = getattr(table, name)
    largest_total = values.max(axis=1).sum()
    return values / largest_total if largest_total > 0 else values
