"""Result files that a user names (`--json`, `--html`, ...): the one place that writes them.

A regular file is replaced in one step, so that a reader sees the old text or the new one and never half of it, and
keeps its permissions. Everything else is written through and stays what it is, as with a shell's `>`: a link's target,
a pipe, a device, a file with several names, a file whose folder takes no new one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeropoint.errors import UsageError

_SURROGATES = re.compile("[\ud800-\udfff]")

#: What a folder says that does not take another file, or does not let go of one (a mount).
_FOLDER_REFUSES = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY, errno.EXDEV, errno.ENOTSUP}


def dump_json(data: Any) -> str:
    """Return JSON text of plain data. Half a surrogate pair, as in a file name that is not UTF-8, becomes U+FFFD."""
    return json.dumps(_valid(data), indent=2) + "\n"


def refuse_unwritable(path: Path) -> None:
    """Raise `UsageError` for what `write_text` would fail on, before the work whose result it is to hold. Nothing is
    opened: opening a pipe would wait for its reader."""
    try:
        if path.is_dir():
            raise UsageError(f"cannot write {path}: it is a folder")
        if path.exists():
            writable = os.access(path, os.W_OK)
        elif (folder := Path(os.path.realpath(path)).parent).is_dir():
            writable = os.access(folder, os.W_OK)
        else:
            raise UsageError(f"cannot write {path}: the folder {folder} does not exist")
    except (OSError, ValueError) as cause:  # a name too long, or with a zero byte
        raise UsageError(_sentence(path, cause)) from cause
    if not writable:
        raise UsageError(f"cannot write {path}: {os.strerror(errno.EACCES)}")


def write_text(path: Path, text: str) -> None:
    """Write a result file in UTF-8. Raises `UsageError` when it cannot be written; a regular file is then as before.

    A pipe whose reader has left is no error: nobody wants the text.
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
    return f"cannot write {path}: {getattr(cause, 'strerror', None) or cause}"


def _replace(path: Path, data: bytes) -> bool:
    """Replace a regular file, or make one, in one step. Return False, with nothing changed, for what is to be written
    through."""
    before = os.stat(path) if path.exists() else None
    if before is not None and (not stat.S_ISREG(before.st_mode) or before.st_nlink > 1):
        return False
    if before is not None and not os.access(path, os.W_OK):
        return False  # the folder would let a file be replaced that may not be written
    target, partial = os.path.realpath(path), None
    try:
        handle, partial = tempfile.mkstemp(
            prefix=".zeropoint-", suffix=".partial", dir=os.path.dirname(target)
        )
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), _new_mode() if before is None else stat.S_IMODE(before.st_mode))
            made = os.fstat(file.fileno())
        if before is not None and (made.st_uid, made.st_gid) != (before.st_uid, before.st_gid):
            return False  # it would change hands
        os.replace(partial, target)
        partial = None
    except OSError as cause:
        if cause.errno not in _FOLDER_REFUSES:
            raise
        return False
    finally:
        if partial is not None:
            with contextlib.suppress(OSError):
                os.unlink(partial)
    return True


def _new_mode() -> int:
    """The permissions of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _descriptor(path: Path) -> int | None:
    """The open descriptor of this process that a path like /dev/stdout names. Its file is not to be opened again: that
    would empty it and write at its beginning."""
    for _ in range(40):  # links to links, as deep as the system follows them
        folder = os.path.realpath(path.parent)
        if re.fullmatch(rf"/proc/{os.getpid()}/(task/\d+/)?fd|/dev/fd", folder) and path.name.isdigit():
            return int(path.name)
        if not path.is_symlink():
            return None
        path = path.parent / os.readlink(path)
    return None


def _write_descriptor(descriptor: int, data: bytes) -> None:
    """Write to an open descriptor, after what was printed before."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    with open(os.dup(descriptor), "wb") as file:
        file.write(data)


def _valid(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {_valid(key): _valid(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_valid(each) for each in value]
    return value
