"""Result files: regular ones are replaced whole, everything else is written through and stays what it is."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zeropoint.errors import UsageError
from zeropoint.files import atomic


def kind(path: Path) -> tuple[int, int]:
    """What a path is, and which file."""
    found = path.lstat()
    return stat.S_IFMT(found.st_mode), found.st_ino


def test_a_regular_file_is_replaced_whole_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")
    path.chmod(0o640)
    with path.open() as before:
        atomic.write_text(path, "new")
        assert before.read() == "old", "a reader saw the file change under it"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("")
    atomic.write_text(tmp_path / "made", "x")
    assert (tmp_path / "made").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("links", [1, 3])
def test_a_link_stays_and_its_target_is_written(links: int, exists: bool, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    target = tmp_path / "folder" / "target"
    if exists:
        target.write_text("old")
    path = target
    for number in range(links):
        link = tmp_path / f"link{number}"
        link.symlink_to(os.path.relpath(path, tmp_path))
        path = link
    was = kind(path)
    atomic.refuse_unwritable(path)
    atomic.write_text(path, "new")
    assert kind(path) == was
    assert target.read_text() == "new"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["target"]


def test_every_name_of_a_file_has_the_new_text(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("old and longer")
    other.hardlink_to(one)
    atomic.write_text(one, "new")
    assert other.read_text() == "new"
    assert kind(one) == kind(other)


def test_a_pipe_gives_its_reader_the_text(tmp_path: Path) -> None:
    pipe, text, received = tmp_path / "pipe", "x" * 300_000, []
    os.mkfifo(pipe)
    was = kind(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_text()))
    reader.start()
    atomic.refuse_unwritable(pipe)
    atomic.write_text(pipe, text)
    reader.join()
    assert received == [text]
    assert kind(pipe) == was


def test_a_pipe_whose_reader_leaves_is_no_error(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def read_little() -> None:
        with pipe.open("rb", buffering=0) as file:
            file.read(1)

    reader = threading.Thread(target=read_little)
    reader.start()
    atomic.write_text(pipe, "x" * 3_000_000)
    reader.join()


def test_devices_are_written_through() -> None:
    was = kind(Path("/dev/null"))
    atomic.write_text(Path("/dev/null"), "x")
    assert kind(Path("/dev/null")) == was
    with pytest.raises(UsageError, match="/dev/full"):
        atomic.write_text(Path("/dev/full"), "x")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "link"])
def test_standard_output_receives_it_after_what_was_printed(name: str, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/stdout")
    code = (
        "import sys; from pathlib import Path; from zeropoint.files import atomic; path = Path(sys.argv[1])\n"
        "print('before'); atomic.refuse_unwritable(path); atomic.write_text(path, 'text\\n'); print('after')"
    )
    with (tmp_path / "out").open("w") as out:
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], stdout=out, check=True)
    assert (tmp_path / "out").read_text() == "before\ntext\nafter\n"


@pytest.mark.parametrize(
    "where", [".", "", "folder", "missing/out.json", "out\0.json", "x" * 300, "file/out"]
)
def test_what_cannot_be_written_is_said_before_the_work(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot write"):
        atomic.refuse_unwritable(Path(where))
    with pytest.raises(UsageError, match="cannot write"):
        atomic.write_text(Path(where), "x")


def test_a_file_that_may_not_be_written_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "theirs"
    path.write_text("old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anything
    with pytest.raises(UsageError, match="ermission"):
        atomic.refuse_unwritable(path)


def test_a_folder_that_takes_no_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mounted"
    path.write_text("old")
    was = kind(path)
    monkeypatch.setattr(os, "replace", refuse)
    atomic.write_text(path, "new")
    assert path.read_text() == "new"
    assert kind(path) == was
    assert [p.name for p in tmp_path.iterdir()] == ["mounted"]


def refuse(*_: object) -> None:
    raise OSError(16, "Device or resource busy")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fchmod", full)
    with pytest.raises(UsageError, match="space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_what_no_file_can_hold_is_replaced(tmp_path: Path) -> None:
    data = {"caf\udce9": ["\ud800", {"deep": ("é", "\U0001f600")}]}
    text = atomic.dump_json(data)
    assert json.loads(text) == {"caf\ufffd": ["\ufffd", {"deep": ["é", "\U0001f600"]}]}
    atomic.write_text(tmp_path / "page", "caf\udce9 \U0001f600")
    assert (tmp_path / "page").read_text(encoding="utf-8") == "caf\ufffd \U0001f600"


def test_replacing_gives_the_name_at_the_end_and_the_mode(tmp_path: Path) -> None:
    path = tmp_path / "memo.json"
    path.write_text("old")
    with atomic.replacing(path, 0o640) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_replacing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "memo.json"
    path.write_text("old")
    with contextlib.suppress(KeyError), atomic.replacing(path, 0o600, durable=True) as file:
        file.write(b"half")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind_of", ["file", "folder"])
def test_a_whole_output_appears_at_the_end_or_not_at_all(kind_of: str, tmp_path: Path) -> None:
    def write(partial: Path) -> None:
        if kind_of == "folder":
            partial.mkdir()
            partial /= "weights"
        partial.write_text("x")

    out = tmp_path / "new" / "out"
    with contextlib.suppress(KeyError), atomic.whole(out) as partial:
        write(partial)
        raise KeyError
    assert list(out.parent.iterdir()) == []
    with atomic.whole(out) as partial:
        write(partial)
        assert not out.exists()
    assert list(out.parent.iterdir()) == [out]
