"""The integer program against trying every plan."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint.planning.solver import CostTable, solve

FORMATS = ("16-bit", "int8", "int4")


def random_table(seed: int, groups: int) -> CostTable:
    rng = np.random.default_rng(seed)
    size = rng.uniform(1, 10, groups)[:, None]
    nbytes = np.round(size * np.array([16.0, 8.1, 4.5]) * 100)
    loss = size * np.array([0.0, 0.01, 1.0]) * rng.uniform(0.1, 5, groups)[:, None]
    seconds = nbytes * rng.uniform(0.9, 1.1, nbytes.shape)
    prefill = seconds[::-1].copy()
    return CostTable(tuple(f"g{i}" for i in range(groups)), FORMATS, nbytes, seconds, prefill, loss, 50.0)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.floats(0.2, 1.1))
def test_nothing_beats_the_solution(seed: int, groups: int, share: float) -> None:
    table = random_table(seed, groups)
    limit = share * table.total("nbytes", table.uniform("16-bit"))
    found = solve(table, {"nbytes": limit}, {"loss": 1.0})
    plans = [np.array(p) for p in itertools.product(range(3), repeat=groups)]
    within = [p for p in plans if table.total("nbytes", p) <= limit]
    if found is None:
        assert not within
        return
    assert table.total("nbytes", found) <= limit * (1 + 1e-9)
    best = min(table.total("loss", p) for p in within)
    worst = table.loss.max(axis=1).sum()
    assert table.total("loss", found) <= best + 3e-4 * worst  # what the tie-break may cost


def test_without_limits_the_wanted_quantity_decides() -> None:
    table = random_table(1, 8)
    smallest = solve(table, {}, {"nbytes": 1.0})
    assert smallest is not None
    np.testing.assert_array_equal(smallest, table.uniform("int4"))
    best = solve(table, {}, {"loss": 1.0})
    assert best is not None
    np.testing.assert_array_equal(best, table.uniform("16-bit"))


def test_impossible_limits_are_none() -> None:
    table = random_table(2, 4)
    assert solve(table, {"nbytes": 60.0}, {"loss": 1.0}) is None
    assert table.total("nbytes", table.uniform("int4")) == pytest.approx(table.nbytes[:, 2].sum() + 50)
