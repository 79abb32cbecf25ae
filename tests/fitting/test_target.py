"""Plans for a machine that is not here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from zeropoint.errors import UsageError
from zeropoint.fitting.target import Target, read_machine
from zeropoint.kernels import active_isa
from zeropoint.machine.detect import Machine
from zeropoint.values.budget import Budget

BOX = Machine("a small box", "Linux", 4, ("scalar",), 10**9, 5 * 10**8, (), 10.0)


def test_a_description_is_what_doctor_writes(tmp_path: Path) -> None:
    file = tmp_path / "box.json"
    file.write_text(json.dumps({"machine": BOX.to_json(), "kernels": [], "advice": []}))
    assert read_machine(file) == BOX
    file.write_text(json.dumps(BOX.to_json()))
    assert read_machine(file) == BOX


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cores": 0}, "cores"),
        ({"isa_levels": ["mmx"]}, "mmx"),
        ({"wheels": 4}, "wheels"),
        ({"ram_total_bytes": "much"}, "ram_total_bytes"),
        ({"isa_levels": 3}, "does not describe"),
    ],
)
def test_a_description_of_nothing_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    file = tmp_path / "box.json"
    file.write_text(json.dumps(BOX.to_json() | change))
    with pytest.raises(UsageError, match=words):
        read_machine(file)


def test_it_is_timed_with_the_other_machines_kernels() -> None:
    target = Target.of(BOX, threads=8)
    assert (target.isa, target.threads) == ("scalar", 4)
    assert target.decode_scale > 0.1
    assert "estimates for a small box" in target.notes[0]
    before = active_isa()
    with target.kernels():
        assert active_isa() == "scalar"
    assert active_isa() == before
    with pytest.raises(UsageError, match="doctor --json"):
        Target.of(replace(BOX, memory_bandwidth_gbps=None), threads=1)


def test_levels_that_are_not_here_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropoint.fitting.target.library.isa_levels", lambda: ("scalar", "avx2"))
    there = replace(BOX, isa_levels=("scalar", "avx2", "avx512"))
    target = Target.of(there, threads=1)
    assert target.isa == "avx2"
    assert "avx512, which cannot be timed here" in target.notes[1]


def test_weights_must_fit_the_other_machine() -> None:
    target = Target.of(BOX, threads=1)
    assert target.within(Budget(max_kl=0.1)).max_memory == 8 * 10**8
    assert target.within(Budget(max_memory=9 * 10**8)).max_memory == 8 * 10**8
    assert target.within(Budget(max_memory=10**8)).max_memory == 10**8
    assert Target.here(1).within(Budget(max_kl=0.1)).max_memory is None
