"""Names, places and removal of packed files in the user's cache.

A file name contains the digest of the artifact's tensors and a digest of everything else that affects the packed bytes,
so an artifact finds its packed file from any folder. `make_room` removes a file when no artifact with those tensors is
left on this machine, when the file was not used for 30 days, or when the cache is full.
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
from zeropoint.files.user_folder import default_folder, private_folder, read_own, remove_old
from zeropoint.models.spec import ModelSpec
from zeropoint.runtime.native import store

#: Most bytes of all packed files together; the newest file is kept whatever its size.
MOST_BYTES = 32 << 30
#: Bytes of the disk that packed files leave free.
SPARE_BYTES = 512 << 20
#: Seconds without use after which a packed file is removed (`UNUSED`), and the age at which a file that no artifact
#: needs, or whose writing was interrupted, is removed (`ABANDONED`).
UNUSED, ABANDONED = 30 * 86400, 3600
SUFFIX = ".packed"


def packed_key(card: Mapping[str, Any], record: ModelSpec, tensors: str) -> str:
    """Return the key of an artifact's packed file.

    The key covers everything that affects the packed bytes: the digest of the tensors, the plan and the layout in the
    card, the rows that the model spec takes of each fused matrix, and the version of the file layout.
    """
    parts = repr([source for _, _, source in record.linears()])
    return f"{tensors[:32]}-{json_digest([store.NAME, tensors, card.get('plan'), card.get('layout'), parts])[:32]}"


def place(key: str) -> Path | None:
    """Return the path of the packed file of this key, whether it exists or not; None if the user has no home folder.

    Raises `OSError` if the cache folder cannot be created, `UntrustedError` if the user does not own it.
    """
    cache = default_folder()
    return None if cache is None else private_folder(cache / MODELS) / f"{key}{SUFFIX}"


def make_room(path: Path, nbytes: int) -> None:
    """Remove old packed files to make room for a new one, `path`, of about `nbytes`.

    Raises `OSError` if the disk does not have enough free space.
    """
    import shutil  # imported here: its compressors take 1 MB, which a start from a packed file does not need

    folder = path.parent
    digests = {tensors[:32] for tensors in _tensors_of(folder)}
    now, files = time.time(), []
    for file in folder.iterdir():
        with contextlib.suppress(OSError):
            status = file.stat(follow_symlinks=False)
            age = now - status.st_mtime
            if SUFFIX not in file.name or file == path:
                continue
            is_needed = file.name[:32] in digests and age < UNUSED
            if age > ABANDONED and (file.suffix != SUFFIX or not is_needed):
                file.unlink()
            else:
                files.append(file)
    remove_old(files, most_bytes=MOST_BYTES - nbytes)
    if shutil.disk_usage(folder).free < nbytes + SPARE_BYTES:
        raise OSError(28, "not enough free space on the disk")


def used(path: Path) -> None:
    """Set the time of a file's last use to now: files that were not used for the longest time are removed first."""
    with contextlib.suppress(OSError):
        os.utime(path)


def _tensors_of(folder: Path) -> Iterator[str]:
    """Yield the tensor digests of all known artifacts whose folder still exists; delete the records of the others."""
    for record in folder.glob("*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            data = parse_json(read_own(record))
            if Path(data["folder"]).is_dir():
                yield str(data["tensors"])
            else:
                record.unlink()
