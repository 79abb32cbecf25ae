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

Floats = NDArray[np.float64]
Picks = NDArray[np.int64]
Quantity = Literal["nbytes", "decode", "prefill", "loss"]

QUANTITIES: tuple[Quantity, ...] = ("nbytes", "decode", "prefill", "loss")

#: Weight of the quantities that are not minimized: they decide between plans that are equal otherwise.
TIE_BREAK = 1e-4


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

    def uniform(self, format: str) -> Picks:
        return np.full(len(self.groups), self.formats.index(format), np.int64)


def solve(
    table: CostTable, limits: Mapping[Quantity, float], minimize: Mapping[Quantity, float]
) -> Picks | None:
    """The best format for each group, `[groups]`; None when nothing meets the limits.

    `minimize` weighs quantities against each other, each as a share of the most that any plan could cost.
    Groups with equal costs are told apart by their order, so that equal tables give equal plans.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    groups, formats = table.nbytes.shape
    scaled = {name: _scaled(table, name) for name in QUANTITIES}
    weights = {name: minimize.get(name, TIE_BREAK) for name in scaled}
    objective = sum(weights[name] * values for name, values in scaled.items())
    one_each = np.kron(np.eye(groups), np.ones(formats))
    constraints = [LinearConstraint(one_each, 1, 1)]
    for name, most in limits.items():
        values: Floats = getattr(table, name)
        scale = max(abs(most), 1e-12)
        left = (most - table.fixed(name)) / scale
        constraints.append(LinearConstraint(values.ravel()[None] / scale, -np.inf, left))
    with _standard_output_closed():
        found = milp(
            np.asarray(objective).ravel(),
            integrality=np.ones(groups * formats),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 1e-6, "time_limit": 20.0},
        )
    if found.x is None:
        return None
    return np.asarray(found.x.reshape(groups, formats).argmax(axis=1), np.int64)


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
