"""What is kept: read back the same, never of something else, never in the way."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from zeropoint.files.user_folder import default_folder
from zeropoint.fitting import cache as cache_module
from zeropoint.fitting.cache import Cache, Known
from zeropoint.fitting.loss import Loss
from zeropoint.planning.solver import QUANTITIES, CostTable
from zeropoint.runtime.native.packed_weights import Packed

KEY = {"model": "a", "tokens": 7}


def known() -> Known:
    rng = np.random.default_rng(0)
    table = CostTable(("g", "h"), ("16-bit", "int8"), *(rng.random((2, 2)) for _ in range(4)), 5.0)
    return Known(table, {np.array([0, 1], np.int64).tobytes(): Loss(0.1, 0.01, 0.02, 64)}, margin=0.9)


def packed() -> Iterator[Packed]:
    yield Packed("norm", None, np.arange(4, dtype=np.float32))


def no_more() -> Iterator[Packed]:
    raise AssertionError("it was made again")


def test_tables_and_losses_come_back(tmp_path: Path) -> None:
    cache, kept = Cache(tmp_path / "new"), known()
    assert cache.read(KEY) is None
    cache.write(KEY, kept)
    found = cache.read(KEY)
    assert found is not None
    assert found.losses == kept.losses
    assert found.table.fixed_nbytes == 5.0
    assert found.margin == 0.9
    for name in QUANTITIES:
        assert (getattr(found.table, name) == getattr(kept.table, name)).all()
    assert cache.read({**KEY, "tokens": 8}) is None


def test_damage_costs_time_and_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    cache.write(KEY, known())
    cache.packed_weights(KEY, 16, packed)
    (tables,) = tmp_path.glob("*.json")
    (candidate,) = tmp_path.glob("*.packed")
    tables.write_text('{"groups": ["g"]}')
    candidate.write_bytes(candidate.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert cache.read(KEY) is None
        assert "norm" in cache.packed_weights(KEY, 16, packed).vectors
    assert "measured again" in caplog.text
    assert "made again" in caplog.text
    assert "norm" in cache.packed_weights(KEY, 16, no_more).vectors


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    for cache in (Cache(tmp_path / "file" / "folder"), Cache(None)):
        cache.write(KEY, known())
        assert cache.read(KEY) is None
        assert (cache.packed_weights(KEY, 16, packed).vectors["norm"] == np.arange(4)).all()
    assert "not cached" in caplog.text


def test_the_oldest_candidates_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "MOST_BYTES", 1000)
    cache = Cache(tmp_path)
    for number in range(5):
        cache.packed_weights({"number": number}, 400, packed)
    assert sum(file.stat().st_size for file in tmp_path.glob("*.packed")) <= 1000
    cache.packed_weights({"number": 4}, 400, no_more)
    before = sorted(tmp_path.iterdir())
    cache.packed_weights({"too": "large"}, 2000, packed)
    assert sorted(tmp_path.iterdir()) == before


def test_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("ZEROPOINT_CACHE", raising=False)
    assert default_folder() == Path("/x/zeropoint")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/u")
    assert default_folder() == Path("/home/u/.cache/zeropoint")
    monkeypatch.setenv("ZEROPOINT_CACHE", "/here")
    assert default_folder() == Path("/here")
