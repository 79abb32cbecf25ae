"""The user's cache folder: its path, checks that its files can be trusted, and the removal of old ones.

Files in the cache decide which weights run and what a gate reports. So a file is read only if it belongs to the user
who runs this process and no other user can write it. Files that come with a model are never used as a cache.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import BinaryIO

#: Write permission of the group or of everybody.
SHARED = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(PermissionError):
    """A file or folder that another user made or may change. `strerror` has the reason."""

    def __init__(self, why: str, path: Path) -> None:
        super().__init__(errno.EPERM, why, str(path))


def default_folder() -> Path | None:
    """Return `$ZEROPOINT_CACHE`, or `zeropoint` in `$XDG_CACHE_HOME` or `~/.cache`; None without a home folder."""
    if named := os.environ.get("ZEROPOINT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the XDG specification says to ignore relative paths
        return Path(base) / "zeropoint"
    try:
        return Path.home() / ".cache" / "zeropoint"
    except RuntimeError:
        return None


def private_folder(path: Path) -> Path:
    """Return the folder; create it, accessible to its user only, if it does not exist.

    Raises `OSError` if it cannot be created, `UntrustedError` if another user owns it or may write to it.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.mkdir(mode=0o700, exist_ok=True)
    _check(os.lstat(path), path, stat.S_ISDIR, "folder")
    return path


def open_own(path: Path) -> BinaryIO:
    """Open a file for reading.

    Raises `OSError` if it cannot be opened, `UntrustedError` if it is a link or no plain file, or if another user owns
    it or may write to it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as cause:
        if cause.errno == errno.ELOOP:
            raise UntrustedError("is a link", path) from cause
        raise
    try:
        _check(os.fstat(descriptor), path, stat.S_ISREG, "plain file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_own(path: Path, most: int = 64 << 20) -> bytes:
    """Return the content of a file of at most `most` bytes.

    Raises the errors of `open_own`, and `ValueError` for a larger file.
    """
    with open_own(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} is larger than {most >> 20} MB")
        return file.read(size)


def remove_old(
    files: Iterable[Path], *, most_files: float = inf, most_bytes: float = inf, most_seconds: float = inf
) -> None:
    """Remove the files that were not used for `most_seconds`, and the least recently used ones beyond the other limits.

    At most `most_files` files of `most_bytes` bytes in all are left. A file that cannot be removed stays.
    """
    found = []
    for file in files:
        with suppress(OSError):
            status = file.stat(follow_symlinks=False)
            found.append((status.st_mtime, status.st_size, file))
    count, nbytes, now = len(found), sum(size for _, size, _ in found), time.time()
    for used, size, file in sorted(found):
        if now - used <= most_seconds and count <= most_files and nbytes <= most_bytes:
            return
        with suppress(OSError):
            file.unlink()
            count, nbytes = count - 1, nbytes - size


def _check(status: os.stat_result, path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    """Raise `UntrustedError` unless the path is of this kind, belongs to this user, and nobody else may write it."""
    if not is_kind(status.st_mode):
        raise UntrustedError(f"is no {kind}", path)
    if status.st_uid != os.geteuid():
        raise UntrustedError("belongs to another user", path)
    if status.st_mode & SHARED:
        raise UntrustedError("may be written by other users", path)
