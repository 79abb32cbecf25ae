"""Writing files whole: a reader sees the old or the new file, never a part.

`replacing` and `whole` write Zeropoint's own files and folders; `replace_bytes` also survives a crash of the machine.

`write_text` writes result files that the user names (`--json`, `--html`, ...). A regular file is replaced in one step
and keeps its permissions. Anything else is written in place, like with a shell's `>`: pipes, devices, files with
several hard links, and files in a folder that allows no new file. A symbolic link stays a link; its target is written.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from zeropoint.errors import ArtifactError, UsageError, reason

_SURROGATES = re.compile("[\ud800-\udfff]")

#: Errors of a folder that allows no new file, or whose file cannot be replaced (a mount point).
_FOLDER_REFUSES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV, errno.ENOTSUP}


@contextlib.contextmanager
def replacing(path: Path, mode: int, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Yield a new file that gets the name `path` when the `with` body ends without an error; remove it otherwise.

    So a reader sees the old or the new file, never a part. `mode` has the new file's permissions. With `durable`, the
    content is on disk before the file gets its name. Raises `OSError`.
    """
    # Not `tempfile`: this module is imported by processes that write nothing, and `tempfile` takes 1 MB of memory.
    partial = path.with_name(f".zeropoint-{os.urandom(6).hex()}{path.suffix[:16]}.partial")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            os.fchmod(descriptor, mode)
            if durable:
                file.flush()
                os.fsync(descriptor)
        os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(partial)  # exists after an error only


@contextlib.contextmanager
def whole(out: Path) -> Iterator[Path]:
    """Yield a hidden path for a file or folder, which becomes `out` when the `with` body ends without an error.

    Otherwise it is removed. Creates the folder that will contain `out`. Raises `OSError`.
    """
    import shutil  # imported here: its compressors take 1 MB

    partial = out.absolute().parent / f".{out.name}.partial-{os.urandom(6).hex()}"
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        for path in (*partial.rglob("*"), partial) if partial.is_dir() else (partial,):
            sync(path)
        partial.replace(out.absolute())
        sync(out.absolute().parent)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically: it has the old or the new bytes, even after a crash. Raises `ArtifactError`."""
    try:
        with replacing(path, 0o644, durable=True) as file:
            file.write(data)
    except OSError as cause:
        raise ArtifactError(f"{path} cannot be written ({reason(cause)})") from cause


def replace_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file like `replace_bytes`."""
    replace_bytes(path, text.encode())


def dump_json(data: Any) -> str:
    """Return plain data as JSON text. Lone surrogates, as in file names that are not UTF-8, become U+FFFD."""
    return json.dumps(_valid(data), indent=2) + "\n"


def refuse_unwritable(path: Path) -> None:
    """Raise `UsageError` if `write_text` would fail on this path; called before the work that makes the result.

    The file is not opened: opening a pipe would wait for its reader.
    """
    try:
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder")
        if path.exists():
            writable = os.access(path, os.W_OK)
        elif (folder := Path(os.path.realpath(path)).parent).is_dir():
            writable = os.access(folder, os.W_OK)
        else:
            raise UsageError(f"cannot write {path}: the folder {folder} does not exist")
    except (OSError, ValueError) as cause:  # the name is too long, or has a zero byte
        raise UsageError(_sentence(path, cause)) from cause
    if not writable:
        raise UsageError(f"cannot write {path}: permission denied")


def write_text(path: Path, text: str) -> None:
    """Write a result file in UTF-8. Raises `UsageError` if it cannot be written.

    A pipe whose reader has left is not an error.
    """
    data = _SURROGATES.sub("\ufffd", text).encode()
    try:
        descriptor = _descriptor(path)
        if descriptor is not None:
            _write_descriptor(descriptor, data)
        elif not _replace(path, data):
            with open(path, "wb") as file:
                file.write(data)
    except BrokenPipeError:
        pass
    except (OSError, ValueError) as cause:
        raise UsageError(_sentence(path, cause)) from cause


def _sentence(path: Path, cause: Exception) -> str:
    return f"cannot write {path}: {reason(cause)}"


class _OwnerChangesError(Exception):
    """Replacing the file would change its owner or group."""


def _replace(path: Path, data: bytes) -> bool:
    """Replace or create a regular file in one step. Return False, without a change, if it must be written in place."""
    before = os.stat(path) if path.exists() else None
    if before is not None and (not stat.S_ISREG(before.st_mode) or before.st_nlink > 1):
        return False
    if before is not None and not os.access(path, os.W_OK):
        return False  # a read-only file must not be replaced, even if its folder allows that
    mode = _new_mode() if before is None else stat.S_IMODE(before.st_mode)
    try:
        with replacing(Path(os.path.realpath(path)), mode) as file:
            file.write(data)
            after = os.fstat(file.fileno())
            if before is not None and (after.st_uid, after.st_gid) != (before.st_uid, before.st_gid):
                raise _OwnerChangesError
    except _OwnerChangesError:
        return False
    except OSError as cause:
        if cause.errno not in _FOLDER_REFUSES:
            raise
        return False
    return True


def _new_mode() -> int:
    """Return the permissions of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _descriptor(path: Path) -> int | None:
    """Return the open descriptor of this process that a path like /dev/stdout names, None for any other path.

    Opening such a path again would truncate the descriptor's file and write at its start.
    """
    for _ in range(40):  # the number of symbolic links that Linux follows
        folder = os.path.realpath(path.parent)
        if re.fullmatch(rf"/proc/{os.getpid()}/(task/\d+/)?fd|/dev/fd", folder) and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _write_descriptor(descriptor: int, data: bytes) -> None:
    """Write to an open descriptor, after flushing text that was printed before."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(os.dup(descriptor), "wb") as file:
        file.write(data)


def _valid(value: Any) -> Any:
    """Return plain data with lone surrogates replaced by U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_valid(key): _valid(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(each) for each in value]
    return value
