"""The table of what groups cost: ranks, estimates and its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zeropoint.errors import UsageError
from zeropoint.values.sensitivity import Cost, Estimate, Group, InputShape, Sensitivity, load, spearman


def table() -> Sensitivity:
    return Sensitivity(
        model="m",
        key="k",
        formats=("int4",),
        tokens=8,
        groups=(Group("a", ("a.q", "a.k"), 0, "q+k", 8), Group("b", ("b",), None, "b", 4)),
        costs=(
            Cost("a", "int4", Estimate(0.1, 0.01), 0.2, Estimate(0.12, 0.0)),
            Cost("b", "int4", Estimate(0.3, 0.01), 0.1),
        ),
        inputs=(InputShape("a", 3.0, 3.0, 5.0, 1),),
        agreement={"fisher ~ measured, int4": 1.0},
    )


def test_measured_wins_over_predicted() -> None:
    loss = table().loss
    assert loss["a"]["int4"].value == 0.12
    assert loss["b"]["int4"].value == 0.3
    assert [cost.group for cost in table().fragile("int4")] == ["b", "a"]


def test_file_round_trip_and_damage(tmp_path: Path) -> None:
    file = tmp_path / "s.json"
    data = json.loads(json.dumps(table().to_json()))
    file.write_text(json.dumps(data))
    assert load(file) == table()
    for broken in ({**data, "sensitivity_version": 0}, {**data, "costs": [{"group": "a"}]}, []):
        file.write_text(json.dumps(broken))
        with pytest.raises(UsageError, match="measure it again"):
            load(file)
    with pytest.raises(UsageError, match="cannot be read"):
        load(tmp_path / "none.json")


def test_spearman_against_known_values() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == 1.0
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == -1.0
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0
    # ties share a rank: (1, 2.5, 2.5, 4) with (1, 2, 3, 4)
    assert spearman([1, 2, 2, 5], [1, 2, 3, 4]) == pytest.approx(0.9487, abs=1e-4)
