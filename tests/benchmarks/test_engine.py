"""The engine's benchmark without models: rounds, time limit, contestants that stop, and its part of the page."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.benchmarks.scripts import script


@pytest.fixture(scope="module")
def engine() -> ModuleType:
    return script("engine")


def contestants(engine: ModuleType, monkeypatch: pytest.MonkeyPatch, dies: str = "") -> list[Any]:
    """Return three contestants that answer at once. The one named `dies` stops answering in its second round."""

    def ask(self: Any, batch: int, length: int, new_tokens: int) -> tuple[float, float]:
        if self.name == dies and len(self.values["prefill 512"]) == 1:
            raise engine.SkippedError("stopped")
        return 0.5, 0.25 * (1 if self.peer == "zeropoint" else 2)

    monkeypatch.setattr(engine.Contestant, "ask", ask)
    monkeypatch.setattr(engine.Contestant, "start", lambda self: self.values["load s"].append(1.0))
    names = ("llama_cpp:Q8_0", "zeropoint:fp16", "zeropoint:int8")
    return [
        engine.Contestant(*name.split(":"), Path("python"), Path("path"), 2, read_bytes=10**8)
        for name in names
    ]


def test_a_run_writes_its_part_of_the_page(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    playing = contestants(engine, monkeypatch)
    engine.measure(playing, {}, 2, 16, float("inf"))
    page = tmp_path / "engine.md"
    options = argparse.Namespace(
        threads=2, rounds=2, new_tokens=16, markdown=page, json=None, part="A model", model=tmp_path
    )
    engine.report(options, playing, {"peer:x": "not installed"}, 1e10)
    text = page.read_text()
    assert "### A model\n" in text
    assert "2 interleaved rounds of 16 new tokens" in text
    assert "- skipped peer:x: not installed" in text
    assert "| zeropoint:int8 / llama_cpp:Q8_0 | 1.00 | 1.00 | 2.00 | 2.00 | 2.00 | 2.00 |" in text
    assert "| zeropoint:int8 / zeropoint:fp16 |" in text
    assert "zeropoint:fp16 / zeropoint:int8" not in text


def test_who_stops_is_skipped_and_the_others_go_on(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing, skipped = contestants(engine, monkeypatch, dies="llama_cpp:Q8_0"), {}
    engine.measure(playing, skipped, 3, 16, float("inf"))
    assert skipped == {"llama_cpp:Q8_0": "stopped"}
    assert [c.name for c in playing] == ["zeropoint:fp16", "zeropoint:int8"]
    assert all(len(c.values["decode"]) == 3 for c in playing)


def test_no_round_begins_that_would_end_after_the_limit(
    engine: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    playing = contestants(engine, monkeypatch)
    engine.measure(playing, {}, 3, 16, 0.0)
    assert all(len(c.values["decode"]) == 1 for c in playing)
