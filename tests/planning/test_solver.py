"""The integer program against trying every plan."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.errors import UnsupportedError
from zeropoint.planning import solver
from zeropoint.planning.solver import QUANTITIES, CostTable, optimize, solve

FORMATS = ("16-bit", "int8", "int4")


def random_table(seed: int, groups: int) -> CostTable:
    rng = np.random.default_rng(seed)
    size = rng.uniform(1, 10, groups)[:, None]
    nbytes = np.round(size * np.array([16.0, 8.1, 4.5]) * 100)
    loss = size * np.array([0.0, 0.01, 1.0]) * rng.uniform(0.1, 5, groups)[:, None]
    seconds = nbytes * rng.uniform(0.9, 1.1, nbytes.shape)
    prefill = seconds[::-1].copy()
    return CostTable(tuple(f"g{i}" for i in range(groups)), FORMATS, nbytes, seconds, prefill, loss, 50.0)


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


# -- how the program ended ------------------------------------------------------------------------


def hard_table(groups: int = 24, formats: int = 6, seed: int = 3) -> CostTable:
    """Costs without any order, which take a search tree to decide."""
    rng = np.random.default_rng(seed)
    arrays = (rng.random((groups, formats)) * scale for scale in (100, 1, 1, 1))
    return CostTable(tuple(map(str, range(groups))), tuple("abcdefgh"[:formats]), *arrays)


def limits_of(table: CostTable, share: float, *names: str) -> dict[Any, float]:
    """Limits between the least and the mean of each quantity."""
    return {
        name: table.least(name) + share * (getattr(table, name).mean(axis=1).sum() - table.least(name))  # type: ignore[arg-type]
        for name in names
    }


def answering(monkeypatch: pytest.MonkeyPatch, status: int, x: Any = None) -> None:
    found = SimpleNamespace(x=x, status=status, message="as the test says")
    monkeypatch.setattr(scipy.optimize, "milp", lambda *_, **__: found)


@pytest.mark.parametrize("status", [1, 3, 4])
@pytest.mark.parametrize("names", [("nbytes",), ("nbytes", "decode"), ("nbytes", "decode", "prefill")])
def test_a_program_that_ends_without_a_plan_is_not_infeasible(
    status: int, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = hard_table(20)
    limits = limits_of(table, 0.6, *names)
    best = optimize(table, limits, {"loss": 1.0})
    assert best is not None
    assert best.optimal
    answering(monkeypatch, status)
    found = optimize(table, limits, {"loss": 1.0})
    assert found is not None
    assert not found.optimal
    assert all(table.total(name, found.picks) <= most for name, most in limits.items())
    assert table.total("loss", found.picks) >= table.total("loss", best.picks) - 1e-6


@pytest.mark.parametrize("status", [1, 4])
def test_the_best_plan_so_far_is_taken_and_not_called_the_best(
    status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = random_table(1, 8)
    answering(monkeypatch, status, x=np.eye(3)[table.uniform("int8")].ravel())
    found = optimize(table, {"nbytes": 1e9}, {"loss": 1.0})
    assert found is not None
    assert not found.optimal
    np.testing.assert_array_equal(found.picks, table.uniform("int8"))


def test_no_plan_and_no_proof_is_an_error_and_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two limits each can be met, and only the program can tell whether both can."""
    shape = (4, 2)
    one, other = np.tile([1.0, 2.0], (4, 1)), np.tile([2.0, 1.0], (4, 1))
    table = CostTable(tuple("abcd"), ("x", "y"), one, other, np.ones(shape), np.ones(shape))
    limits: dict[Any, float] = {"nbytes": 5.0, "decode": 5.0}
    assert optimize(table, limits, {"loss": 1.0}) is None
    answering(monkeypatch, 1)
    with pytest.raises(UnsupportedError, match="no proof that there is none"):
        solve(table, limits, {"loss": 1.0})


def test_infeasible_for_one_limit_is_not_believed_where_the_sums_say_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HiGHS calls a program that it cannot read infeasible."""
    table = random_table(4, 5)
    least = table.uniform("int4")
    answering(monkeypatch, 2)
    found = optimize(table, {"nbytes": table.total("nbytes", least)}, {"loss": 1.0})
    assert found is not None
    np.testing.assert_array_equal(found.picks, least)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_costs_that_are_no_numbers_are_named(value: float) -> None:
    table = random_table(5, 3)
    table.loss[1, 2] = value
    with pytest.raises(UnsupportedError, match="the loss of g1 as int4 is not a finite number"):
        solve(table, {"nbytes": 1e9}, {"loss": 1.0})


@pytest.mark.parametrize("seed", range(12))
def test_limits_are_kept_to_the_byte(seed: int) -> None:
    """HiGHS lets a sum exceed its limit by a millionth."""
    table = random_table(seed, 30)
    exact = CostTable(
        table.groups, FORMATS, table.nbytes * 1e6, table.decode, table.prefill, table.loss, table.fixed_nbytes
    )
    limit = float(np.floor(exact.least("nbytes") * (1.05 + 0.07 * seed)))
    found = solve(exact, {"nbytes": limit}, {"loss": 1.0})
    assert found is not None
    assert exact.total("nbytes", found) <= limit


#: The module is run by its file: its package imports torch, which would take longer than all the rest.
SLOW = """
import runpy, sys
import numpy as np
import scipy.optimize
solver = runpy.run_path(sys.argv[1], run_name="solver")
data = np.load(sys.argv[2])
costs = (data[name] for name in solver["QUANTITIES"])
table = solver["CostTable"](tuple(map(str, range(24))), tuple("abcdef"), *costs)
print("ready", flush=True)
print(solver["solve"](table, dict(zip(("nbytes", "decode"), data["limits"])), {"loss": 1.0}).tolist())
"""


def test_a_slow_machine_finds_the_same_plan(tmp_path: Path) -> None:
    """The process stands still nine tenths of the time."""
    table = hard_table()
    limits = limits_of(table, 0.5, "nbytes", "decode")
    want = solve(table, limits, {"loss": 1.0})
    assert want is not None
    file = tmp_path / "table.npz"
    np.savez(file, **{name: getattr(table, name) for name in QUANTITIES}, limits=list(limits.values()))
    command = [sys.executable, "-c", SLOW, str(solver.__file__), str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "ready\n"
        until = time.monotonic() + 3
        while slow.poll() is None and time.monotonic() < until:
            os.kill(slow.pid, signal.SIGSTOP)
            time.sleep(0.09)
            os.kill(slow.pid, signal.SIGCONT)
            time.sleep(0.01)
        assert slow.stdout.read() == f"{want.tolist()}\n"


def test_no_limit_of_the_program_is_one_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real, given = scipy.optimize.milp, []

    def watched(*arguments: Any, options: dict[str, Any], **named: Any) -> Any:
        given.append(dict(options))
        return real(*arguments, options=options, **named)

    monkeypatch.setattr(scipy.optimize, "milp", watched)
    table = hard_table(10)
    assert solve(table, limits_of(table, 0.5, "nbytes"), {"loss": 1.0}) is not None
    assert "node_limit" in given[0]
    assert not any("time" in name for name in given[0])
