"""The packed file: used when it fits, made again when it does not, never trusted."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.native.conftest import Artifacts
from zeropoint.models.record import DecoderRecord, LinearSlot, Rows
from zeropoint.runtime.native import loading, store
from zeropoint.runtime.native.runner import NativeRunner

TOKENS = np.arange(20)


@pytest.fixture
def artifact(artifact_of: Artifacts, tmp_path: Path) -> Path:
    """A private copy without a packed file."""
    source = artifact_of("gpt_neox", "int4")
    return Path(shutil.copytree(source, tmp_path / "a", ignore=shutil.ignore_patterns(f"{store.NAME}*")))


def logits(path: Path) -> np.ndarray:
    return NativeRunner.open(path, threads=1).logits(TOKENS)


def test_the_file_is_made_once_and_gives_the_same_model(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = logits(artifact)
    assert (artifact / store.NAME).is_file()
    assert not list(artifact.glob(f"{store.NAME}.*")), "a temporary file was left"

    def never(*_: object) -> None:
        raise AssertionError("packed again")

    monkeypatch.setattr(loading, "pack_stream", never)
    np.testing.assert_array_equal(logits(artifact), first)


def test_packing_in_memory_is_the_same(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = logits(artifact)
    (artifact / store.NAME).unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write", full)
    np.testing.assert_array_equal(logits(artifact), kept)
    assert not (artifact / store.NAME).exists()


@pytest.mark.parametrize("piece", [1000, 4096, 1 << 40])
def test_writing_in_pieces_changes_no_byte(
    piece: int, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(artifact)
    file = artifact / store.NAME
    whole = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(store, "PIECE", piece)
    logits(artifact)
    assert file.read_bytes() == whole


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("where", ["magic", "index", "first blob", "middle", "cut", "empty", "not a file"])
def test_a_damaged_file_is_made_again(where: str, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    want, path = logits(artifact), artifact / store.NAME
    size = path.stat().st_size
    if where == "cut":
        os.truncate(path, size // 2)
    elif where == "empty":
        os.truncate(path, 0)
    elif where == "not a file":
        path.unlink()
        path.mkdir()
    else:
        flip(path, {"magic": 3, "index": size - 5, "first blob": 70, "middle": size // 3}[where])
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(logits(artifact), want)
    assert len(caplog.records) == 1
    assert "packing again" in caplog.text
    if where != "not a file":
        caplog.clear()
        np.testing.assert_array_equal(logits(artifact), want)
        assert not caplog.records


def test_another_artifact_under_the_same_name_is_noticed(
    artifact: Path, artifact_of: Artifacts, caplog: pytest.LogCaptureFixture
) -> None:
    logits(artifact)
    other = artifact_of("gpt_neox", "int8")
    for file in artifact.glob("*.*"):
        if file.name != store.NAME and file.is_file():
            shutil.copy(other / file.name, file)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(logits(artifact), logits(other))
    assert "another state" in caplog.text


def test_a_changed_time_alone_packs_again(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    want = logits(artifact)
    os.utime(artifact / "model.safetensors", (1, 1))
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(logits(artifact), want)
    assert "another state" in caplog.text


def test_a_record_that_cuts_weights_otherwise_packs_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a later release may."""
    want = logits(artifact)
    derive = loading.derive

    def other(config: dict[str, object]) -> DecoderRecord:
        record = derive(config)
        source = record.model.linears[LinearSlot.HEAD]
        head = replace(source, rows=Rows(0, source.shape[0]))
        return replace(
            record, model=replace(record.model, linears={**record.model.linears, LinearSlot.HEAD: head})
        )

    monkeypatch.setattr(loading, "derive", other)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(logits(artifact), want)
    assert "another state" in caplog.text


def test_leftovers_are_swept(artifact: Path) -> None:
    old, new = artifact / f"{store.PREFIX}0.1", artifact / f"{store.NAME}.young"
    for file in (old, new):
        file.write_bytes(b"x")
    os.utime(old, (1, 1))
    logits(artifact)
    assert not old.exists()
    assert new.exists()


def test_a_quality_verdict_in_the_card_does_not(artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    logits(artifact)
    card = json.loads((artifact / "zeropoint.json").read_text())
    card["verdict"] = {"passed": True}
    (artifact / "zeropoint.json").write_text(json.dumps(card))
    with caplog.at_level(logging.WARNING):
        logits(artifact)
    assert not caplog.records


def test_the_checksum_notices_changed_and_exchanged_pages() -> None:
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, 40_000, np.uint8)
    want = store.checksum(data)
    for at in rng.integers(0, data.size, 50):
        changed = data.copy()
        changed[at] ^= 1 << rng.integers(8)
        assert store.checksum(changed) != want
    exchanged = data.copy()
    exchanged[:4096], exchanged[4096:8192] = data[4096:8192], data[:4096]
    assert store.checksum(exchanged) != want
    assert store.checksum(data[:-1]) != want
    assert store.checksum(np.zeros(0, np.uint8)) == 0
