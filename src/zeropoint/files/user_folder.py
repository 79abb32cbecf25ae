"""The user's cache folder: where it is, and which files in it may be believed.

A file in the cache decides what is run or what a gate says. It is believed only if the user who runs this process made
it and nobody else can change it; a file that came with a model lies elsewhere, and is never looked for.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

#: Write permission of the group or of everybody.
SHARED = stat.S_IWGRP | stat.S_IWOTH


class UntrustedError(PermissionError):
    """A file or folder that somebody else made or may change. `strerror` says which of it."""

    def __init__(self, why: str, path: Path) -> None:
        super().__init__(errno.EPERM, why, str(path))


def default_folder() -> Path | None:
    """`$ZEROPOINT_CACHE`, or `zeropoint` in the platform's cache folder (`$XDG_CACHE_HOME`, else `~/.cache`).

    None where the user has no home.
    """
    if named := os.environ.get("ZEROPOINT_CACHE"):
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(base):  # the convention says to ignore a relative one
        return Path(base) / "zeropoint"
    try:
        return Path.home() / ".cache" / "zeropoint"
    except RuntimeError:
        return None


def private_folder(path: Path) -> Path:
    """Make the folder, readable by its user alone, unless it is there.

    Raises `OSError` where it cannot be made, `UntrustedError` for one that another user owns or may write to.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.mkdir(mode=0o700, exist_ok=True)
    _check(os.lstat(path), path, stat.S_ISDIR, "folder")
    return path


def open_own(path: Path) -> BinaryIO:
    """Open a file to read.

    Raises `OSError`, and `UntrustedError` for a link, for what is no plain file, and for a file that another user owns
    or may write to.
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
    """The content of a file of at most `most` bytes. Raises as `open_own` does, and `ValueError` for a larger file."""
    with open_own(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > most:
            raise ValueError(f"{path} is larger than {most >> 20} MB")
        return file.read(size)


def _check(status: os.stat_result, path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    if not is_kind(status.st_mode):
        raise UntrustedError(f"is no {kind}", path)
    if status.st_uid != os.geteuid():
        raise UntrustedError("belongs to another user", path)
    if status.st_mode & SHARED:
        raise UntrustedError("may be written by other users", path)
