"""The packed file: used when it fits and is the user's own, made again when not, never taken from an artifact."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.native.conftest import Artifacts
from zeropoint.artifact import update_card
from zeropoint.errors import ArtifactError
from zeropoint.files import identity, user_folder
from zeropoint.files.identity import MODELS
from zeropoint.models.spec import LinearSlot, ModelSpec, Rows
from zeropoint.runtime.native import kept, loading, store
from zeropoint.runtime.native.packed_weights import Packed
from zeropoint.runtime.native.runner import NativeRunner

TOKENS = np.arange(20)


@pytest.fixture
def artifact(artifact_of: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy, and a cache of its own that knows nothing of it."""
    monkeypatch.setenv("ZEROPOINT_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(artifact_of("gpt_neox", "int4"), tmp_path / "a"))


def logits(path: Path) -> np.ndarray:
    return NativeRunner.open(path, threads=1).logits(TOKENS)


def packed(artifact: Path) -> Path:
    """The only packed file in the cache."""
    (found,) = (artifact.parent / "cache" / MODELS).glob(f"*{kept.SUFFIX}")
    return found


def never(*_: object) -> None:
    raise AssertionError("packed again")


def test_the_file_is_made_once_and_gives_the_same_model(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = logits(artifact)
    assert packed(artifact).stat().st_mode & 0o777 == 0o600
    assert not list(packed(artifact).parent.glob("*.packed.*")), "a temporary file was left"
    assert {file.name for file in artifact.iterdir() if file.name.startswith(".")} == set()
    monkeypatch.setattr(loading, "pack_stream", never)
    np.testing.assert_array_equal(logits(artifact), first)


def full(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "what", ["write", "disk", "no home", "a file in the way", "folder of others", "read only"]
)
def test_packing_in_memory_is_the_same(
    what: str, artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    want, file = logits(artifact), packed(artifact)
    file.unlink()
    if what == "write":
        monkeypatch.setattr(store, "write", full)
    elif what == "disk":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    elif what == "no home":
        monkeypatch.setattr(kept, "default_folder", lambda: None)
        monkeypatch.setattr(identity, "default_folder", lambda: None)
    elif what == "a file in the way":
        (artifact.parent / "file").write_text("")
        monkeypatch.setenv("ZEROPOINT_CACHE", str(artifact.parent / "file" / "cache"))
    elif what == "folder of others":
        file.parent.chmod(0o777)
    else:
        monkeypatch.setattr(Path, "mkdir", full)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(logits(artifact), want)
    assert not any(record.levelno > logging.INFO for record in caplog.records)
    assert what == "no home" or "in memory" in caplog.text
    assert not file.exists()


@pytest.mark.parametrize("piece", [1000, 4096, 1 << 40])
def test_writing_in_pieces_changes_no_byte(
    piece: int, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits(artifact)
    file = packed(artifact)
    whole = file.read_bytes()
    file.unlink()
    monkeypatch.setattr(store, "PIECE", piece)
    logits(artifact)
    assert file.read_bytes() == whole


def make_foreign(path: Path, how: str) -> None:
    """The file as somebody else may have put it there."""
    if how == "a link":
        path.rename(path.with_name("elsewhere"))
        path.symlink_to("elsewhere")
    elif how == "of others":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file to another user")
        os.chown(path, 12345, 12345)
    elif how == "another key":
        held = store.read(path, path.stem)
        parts = [Packed(name, rows, value) for (name, rows), value in held.weights.items()]
        parts += [Packed(name, None, value) for name, value in held.vectors.items()]
        store.write(path, "0" * 65, parts)
    else:
        path.chmod(0o620 if how == "for the group" else 0o602)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


FOREIGN = ("a link", "of others", "for the group", "for all", "another key")


@pytest.mark.parametrize(
    "where", ["magic", "index", "first blob", "middle", "cut", "empty", "not a file", *FOREIGN]
)
def test_a_damaged_file_is_made_again(where: str, artifact: Path, caplog: pytest.LogCaptureFixture) -> None:
    want, path = logits(artifact), packed(artifact)
    size = path.stat().st_size
    if where == "cut":
        os.truncate(path, size // 2)
    elif where == "empty":
        os.truncate(path, 0)
    elif where == "not a file":
        path.unlink()
        path.mkdir()
    elif where in FOREIGN:
        make_foreign(path, where)
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


def test_another_artifact_under_the_same_name_is_noticed(artifact: Path, artifact_of: Artifacts) -> None:
    logits(artifact)
    other = artifact_of("gpt_neox", "int8")
    for file in other.glob("*.*"):
        shutil.copy(file, artifact / file.name)
    np.testing.assert_array_equal(logits(artifact), logits(other))


def test_what_ships_beside_an_artifact_is_not_read(artifact: Path, artifact_of: Artifacts) -> None:
    """Under any name that it may have had, and with the right key in it."""
    want = logits(artifact)
    key, file = packed(artifact).stem, packed(artifact)
    held = store.read(file, key)
    parts = [Packed(name, None, value * 2) for name, value in held.vectors.items()]
    parts += [Packed(name, rows, value) for (name, rows), value in held.weights.items()]
    forged = artifact / ".zeropoint-packed-2.2"
    store.write(forged, key, parts)
    for name in (file.name, f"models/{file.name}", f".cache/zeropoint/models/{file.name}"):
        (artifact / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(forged, artifact / name)
    file.unlink()
    np.testing.assert_array_equal(logits(artifact), want)


def test_a_copy_elsewhere_uses_the_same_file(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    want = logits(artifact)
    copy = Path(shutil.copytree(artifact, artifact.parent / "copy"))
    monkeypatch.setattr(loading, "pack_stream", never)
    np.testing.assert_array_equal(logits(copy), want)


def test_weights_that_change_while_they_are_packed_are_refused(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = loading.pack_stream

    def meanwhile(record: ModelSpec, stream: object) -> object:
        yield from real(record, stream)  # type: ignore[arg-type]
        flip(artifact / "model.safetensors", -1)

    monkeypatch.setattr(loading, "pack_stream", meanwhile)
    with pytest.raises(ArtifactError, match="changed while they were read"):
        logits(artifact)


def test_a_record_that_cuts_weights_otherwise_packs_again(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a later release may."""
    want = logits(artifact)
    derive = loading.derive_stored

    def other(config: dict[str, object], names: object) -> ModelSpec:
        record = derive(config, names)  # type: ignore[arg-type]
        source = record.model.linears[LinearSlot.HEAD]
        head = replace(source, rows=Rows(0, source.shape[0]))
        return replace(
            record, model=replace(record.model, linears={**record.model.linears, LinearSlot.HEAD: head})
        )

    monkeypatch.setattr(loading, "derive_stored", other)
    with caplog.at_level(logging.INFO):
        np.testing.assert_array_equal(logits(artifact), want)
    assert "packing" in caplog.text


def old(path: Path, seconds: float) -> None:
    path.write_bytes(b"x" * 1000)
    os.utime(path, (time.time() - seconds,) * 2)


def test_leftovers_are_swept(artifact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache" / MODELS
    user_folder.private_folder(folder)
    killed, young = folder / "a.packed.17-3", folder / "b.packed.17-3"
    gone, unused, needed = (folder / f"{letter * 32}-0.packed" for letter in "cde")
    for letter, where in (("c", tmp_path / "gone"), ("d", tmp_path), ("e", tmp_path)):
        memo = {"folder": str(where), "files": [], "tensors": letter * 64}
        (folder / f"{letter}.json").write_text(json.dumps(memo))
    for file, seconds in ((killed, 4e3), (young, 60), (gone, 4e3), (unused, 4e6), (needed, 4e3)):
        old(file, seconds)
    logits(artifact)
    left = [file for file in (killed, young, gone, unused, needed) if file.exists()]
    assert left == [young, needed]
    assert not (folder / "c.json").exists()


def test_the_oldest_make_room(artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = user_folder.private_folder(tmp_path / "cache" / MODELS)
    files = [folder / f"{number:032d}-0.packed" for number in range(4)]
    for number, file in enumerate(files):
        old(file, 1000 - 100 * number)
    size = loading._tensor_bytes(artifact / "model.safetensors")
    monkeypatch.setattr(kept, "MOST_BYTES", size + 2500)
    logits(artifact)
    assert [file for file in files if file.exists()] == files[2:]
    monkeypatch.setattr(kept, "MOST_BYTES", 10)
    file = packed_of(folder, files)
    file.unlink()
    logits(artifact)
    assert packed_of(folder, files) == file, "the newest is kept whatever its size"


def packed_of(folder: Path, others: list[Path]) -> Path:
    (found,) = set(folder.glob("*.packed")) - set(others)
    return found


def test_two_processes_at_once(artifact: Path) -> None:
    """Each packs for itself, and the one that is later replaces the other's file by the same bytes."""
    found: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: found.append(logits(artifact))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found:
        np.testing.assert_array_equal(each, logits(artifact))
    assert len(found) == 4
    assert packed(artifact).is_file()


def test_a_verdict_in_the_card_changes_nothing(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logits(artifact)
    update_card(artifact, verdict={"passed": True})
    monkeypatch.setattr(loading, "pack_stream", never)
    logits(artifact)


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
