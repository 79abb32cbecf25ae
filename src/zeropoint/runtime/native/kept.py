"""The packed files of artifacts in the user's cache: named by what they hold, and swept.

A file is named by the digest of the artifact's tensors and by whatever else decides its bytes. It serves the same
artifact wherever it lies. It goes when no artifact with these tensors is left on this machine, when it was not used for
long, or when the cache is full.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zeropoint.files.identity import MODELS
from zeropoint.files.json_file import json_digest, parse_json
from zeropoint.files.user_folder import default_folder, private_folder, read_own
from zeropoint.models.spec import ModelSpec
from zeropoint.runtime.native import store

#: Bytes of all packed files at most; the newest is kept whatever its size.
MOST_BYTES = 32 << 30
#: Room left on the disk for others.
SPARE_BYTES = 512 << 20
#: Seconds after which a file that no artifact needs, or that was begun and not finished, is removed.
UNUSED, ABANDONED = 30 * 86400, 3600
SUFFIX = ".packed"


def packed_key(card: Mapping[str, Any], record: ModelSpec, tensors: str) -> str:
    """All that decides an artifact's packed bytes: the digest of its tensors, the plan and layout that say what they
    mean, how the record cuts them, and the layout of the file."""
    parts = repr([source for _, _, source in record.linears()])
    return f"{tensors[:32]}-{json_digest([store.NAME, tensors, card.get('plan'), card.get('layout'), parts])[:32]}"


def place(key: str) -> Path | None:
    """Where the file of this key is, or is to be. None for a user who has no home.

    Raises `OSError` where the folder cannot be made, `UntrustedError` where it is not the user's own.
    """
    cache = default_folder()
    return None if cache is None else private_folder(cache / MODELS) / f"{key}{SUFFIX}"


def make_room(path: Path, nbytes: int) -> None:
    """Sweep the folder for a new file of about `nbytes`. Raises `OSError` where the disk has no room for it."""
    import shutil  # with its compressors, 1 MB that a start from a packed file does without

    folder = path.parent
    wanted = {tensors[:32] for tensors in _tensors_of(folder)}
    now, files = time.time(), []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            status = file.stat(follow_symlinks=False)
            age = now - status.st_mtime
            if SUFFIX not in file.name or file == path:
                continue
            is_needed = file.name[:32] in wanted and age < UNUSED
            if age > ABANDONED and (file.suffix != SUFFIX or not is_needed):
                file.unlink()
            else:
                files.append((status.st_mtime, status.st_size, file))
    total = nbytes + sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total > MOST_BYTES:
            with contextlib.suppress(OSError):
                file.unlink()
                total -= size
    if shutil.disk_usage(folder).free < nbytes + SPARE_BYTES:
        raise OSError(28, "no room on the disk")


def used(path: Path) -> None:
    """A file that was used stays longer."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _tensors_of(folder: Path) -> Iterator[str]:
    """The digests of all artifacts that are still there; what is remembered of others is removed."""
    for memo in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = parse_json(read_own(memo))
            if Path(data["folder"]).is_dir():
                yield str(data["tensors"])
            else:
                memo.unlink()
