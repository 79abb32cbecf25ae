"""The speeds of the kernels by format: measured at every level, kept by processor, library and threads."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.speeds import speeds_of
from zeropoint.kernels import active_isa, isa_levels, library
from zeropoint.runtime.native import format_speeds, timing
from zeropoint.runtime.native.format_speeds import FORMATS, ROWS, kept, measure, measured
from zeropoint.values.scheme import parse


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure a matrix of 64 x 64, once."""
    monkeypatch.setattr(format_speeds, "_SHAPE", (64, 64))
    monkeypatch.setattr(format_speeds, "_BYTES", 1 << 15)
    monkeypatch.setattr(format_speeds, "_PASSES", dict.fromkeys(ROWS.values(), 2))


def test_every_format_is_timed_at_every_level(small: None) -> None:
    before, steps = active_isa(), []
    speeds = measure(threads=1, step=lambda what, done, total=1.0: steps.append((what, done)))
    assert active_isa() == before
    assert list(speeds.levels) == [level for level in isa_levels() if level != "scalar"]
    for formats in speeds.levels.values():
        assert tuple(formats) == FORMATS
        assert all(value > 0 for works in formats.values() for value in works.values())
        assert all(list(works) == list(ROWS) for works in formats.values())
    assert all(0 <= done < 1 for _, done in steps)


def test_a_format_without_kernels_is_left_out(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_speeds, "FORMATS", ("fp16", "int4:g32:sym:bf16:a8g24"))
    for formats in measure(threads=1).levels.values():
        assert list(formats) == ["fp16"]


def test_a_speed_is_multiply_adds_over_the_fastest_pass(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(format_speeds, "FORMATS", ("fp16",))
    monkeypatch.setattr(
        timing,
        "product_seconds",
        lambda groups, passes, threads: format_speeds.np.array([[2.0], [0.5]]),
    )
    level = next(iter(measure(threads=1).levels.values()), None)
    if level is None:
        pytest.skip("this processor has the scalar kernels only")
    copies = 1 + (1 << 15) // 8192
    assert level["fp16"]["decode"] == pytest.approx(copies * 64 * 64 / 0.5 / 1e9)
    assert level["fp16"]["prefill"] == pytest.approx(512 * 64 * 64 / 0.5 / 1e9)


def test_quiet_measurements_are_kept_by_threads_and_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    def pretend(*, threads: int, step: object) -> format_speeds.FormatSpeeds:
        made.append(threads)
        return replace(speeds_of({}, threads=threads), other_cores=load)

    monkeypatch.setattr(format_speeds, "measure", pretend)
    folder, load = tmp_path / "cache", 1.5
    assert not measured(folder, threads=1).is_quiet
    assert kept(folder, threads=1) is None  # other programs were running
    load = 0.0
    found = measured(folder, threads=1)
    assert measured(folder, threads=1) == kept(folder, threads=1) == found
    assert made == [1, 1]
    assert kept(folder, threads=2) is None
    measured(folder, threads=1, fresh=True)
    assert made == [1, 1, 1]
    monkeypatch.setattr(library, "digest", lambda: "another build")
    assert kept(folder, threads=1) is None
    measured(None, threads=1)
    assert kept(None, threads=1) is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data.pop("levels"),
        lambda data: data["levels"]["avx2"]["int8"].update(decode="fast"),
        lambda data: data["levels"]["avx2"]["int8"].update(prefill=0),
        lambda data: data["levels"]["avx2"].pop("fp16"),
    ],
)
def test_damaged_speeds_are_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_speeds, "measure", lambda threads, step: speeds_of({}, threads=threads))
    speeds = measured(tmp_path / "cache", threads=1)
    (file,) = (tmp_path / "cache").iterdir()
    data = json.loads(file.read_text())
    damage(data)  # type: ignore[operator]
    file.write_text(json.dumps(data))
    with caplog.at_level(logging.WARNING):
        assert kept(tmp_path / "cache", threads=1) is None
    assert "are not used" in caplog.text
    assert measured(tmp_path / "cache", threads=1) == speeds == kept(tmp_path / "cache", threads=1)


def test_a_cache_that_cannot_be_written_costs_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(format_speeds, "measure", lambda threads, step: speeds_of({}))
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        assert measured(tmp_path / "file", threads=1) == speeds_of({})
    assert "are not kept" in caplog.text


def test_the_formats_are_presets_and_schemes() -> None:
    assert len({str(parse(name)) for name in FORMATS}) == len(FORMATS)
    for preset, variants in format_speeds.VARIANTS.items():
        assert all(parse(v).bits == parse(preset).bits for v in variants)
