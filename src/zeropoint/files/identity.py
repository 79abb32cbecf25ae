"""Integrity of an artifact: whether its files still match the digests in its card.

The card (zeropoint.json) holds three sha256 digests: of the tensors (`tensor_digest.py`), of config.json, and of the
card itself. Code that runs
an artifact or reports its quality calls `standing`, which lists the mismatches ("doubts").

Hashing the tensors reads all of them, so the digest is stored in the user's cache, with device, inode, size and times
of every file. Replacing a file changes its inode. Writing into a file changes its ctime, which no program can set, even
if its mtime is set back. So unchanged values mean unchanged tensors. `verify` ignores the cache.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError, reason
from zeropoint.files import atomic
from zeropoint.files.json_file import (
    CARD_NAME,
    MAX_CARD_BYTES,
    json_digest,
    load_json,
    parse_json,
    short_sha256,
)
from zeropoint.files.shards import shard_files
from zeropoint.files.user_folder import default_folder, private_folder, read_own

logger = logging.getLogger(__name__)

#: The card's field of digests, and the keys in it.
FIELD = "digests"
KEYS = ("tensors", "config", "card")

#: Nanoseconds. If a file changed less than this before it was read, it could change again without a new time: then the
#: digest is not stored.
SETTLED_NS = 2_000_000_000

#: Folder in the user's cache for data of artifacts: these digests, and packed weights.
MODELS = "models"

Files = list[list[str | int]]
"""For every file of weights: name, device, inode, size, mtime and ctime in ns."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The result of comparing an artifact with its card.

    - `tensors`: digest of the artifact's tensors;
    - `known`: whether the card has digests;
    - `doubts`: one clause per mismatch; empty if the files match or the card has no digests.
    """

    tensors: str
    known: bool
    doubts: tuple[str, ...]

    def sentence(self, folder: Path) -> str:
        """Return the warning about the artifact in this folder."""
        return (
            f"{folder}: {'; '.join(self.doubts)}. The quality in its card is of another state of the artifact"
        )


# -- the card -------------------------------------------------------------------------------------


def card_digest(card: Mapping[str, Any]) -> str:
    """Return the digest of a card, computed without the card's digest of itself."""
    other_digests = {key: value for key, value in (card.get(FIELD) or {}).items() if key != "card"}
    return json_digest({**card, FIELD: other_digests})


def sealed(card: Mapping[str, Any], *, tensors: str, config: str) -> dict[str, Any]:
    """Return the card with its three digests, ready to write."""
    digests = {"tensors": tensors, "config": config}
    return {**card, FIELD: {**digests, "card": card_digest({**card, FIELD: digests})}}


def standing(folder: Path, card: Mapping[str, Any] | None = None, *, verify: bool = False) -> Standing:
    """Compare an artifact folder with its card; `card` defaults to the folder's own.

    `verify` reads every tensor instead of using a stored digest. Raises `ArtifactError` for unreadable files.
    """
    card = load_json(folder / CARD_NAME, MAX_CARD_BYTES) if card is None else card
    tensors = tensors_digest(folder, verify=verify)
    digests = card.get(FIELD)
    if not isinstance(digests, Mapping):
        return Standing(tensors, False, ())
    mismatches = []
    if digests.get("card") != card_digest(card):
        mismatches.append(f"{CARD_NAME} was edited after it was written")
    if digests.get("config") != config_digest(folder):
        mismatches.append("config.json is not the one that the artifact was made with")
    if digests.get("tensors") != tensors:
        mismatches.append("its weights are not those that the card describes: they were replaced or damaged")
    return Standing(tensors, True, tuple(mismatches))


def doubts(folder: Path, card: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `Standing.doubts`. For a card without digests, return () and read no tensors."""
    return standing(folder, card).doubts if isinstance(card.get(FIELD), Mapping) else ()


def say_doubts(folder: Path) -> None:
    """Log a warning if an artifact does not match its card. Raises the errors of `standing`."""
    result = standing(folder)
    if result.doubts:
        logger.warning("%s", result.sentence(folder))


def verify(folder: Path) -> Standing:
    """Compare an artifact with its card by reading every tensor. Raises `ArtifactError` for a mismatch."""
    result = standing(folder, verify=True)
    if result.doubts:
        raise ArtifactError(
            f"{folder} is not what its card says: {'; '.join(result.doubts)}; make the artifact again, or copy an "
            "intact one again"
        )
    return result


def config_digest(folder: Path) -> str:
    """Return the digest of config.json's content; the order of keys does not matter. Raises `ArtifactError`."""
    return json_digest(load_json(folder / "config.json"))


# -- the tensors ----------------------------------------------------------------------------------


def tensors_digest(folder: Path, *, verify: bool = False) -> str:
    """Return the digest of a folder's tensors, from the user's cache if no file changed and `verify` is not set.

    Raises `ArtifactError` for a folder without weights and for damaged files.
    """
    files = shard_files(folder, ArtifactError)
    if not files:
        raise ArtifactError(f"{folder} holds no weights: make the artifact again")
    state = file_states(folder)
    memo = _memo_path(folder)
    if not verify and memo is not None and (stored := _read_memo(memo, state)) is not None:
        return stored
    from zeropoint.files.tensor_digest import digest_files

    started = time.time_ns()
    digest = digest_files(files)
    if state != file_states(folder):
        raise ArtifactError(f"the weights in {folder} changed while they were read: try again")
    newest = max(max(int(changed), int(written)) for *_, written, changed in state)
    if memo is not None and newest < started - SETTLED_NS:
        _write_memo(memo, {"folder": str(folder.resolve()), "files": state, "tensors": digest})
    return digest


def file_states(folder: Path) -> Files:
    """Return the metadata of every file of weights, which changes whenever a file changes. Raises `ArtifactError`."""
    try:
        return [
            [path.name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]
            for path in shard_files(folder, ArtifactError)
            for s in [path.stat()]
        ]
    except OSError as cause:
        raise ArtifactError(f"the weights in {folder} cannot be read ({reason(cause)})") from cause


def _memo_path(folder: Path) -> Path | None:
    """Return the path of the cache file for a folder's digest, None without a cache."""
    cache = default_folder()
    name = short_sha256(os.fsencode(folder.resolve()))[:32]
    return None if cache is None else cache / MODELS / f"{name}.json"


def _read_memo(memo: Path, state: Files) -> str | None:
    """Return the stored digest of files in this state, None if there is none or the cache file is not trusted."""
    try:
        data = parse_json(read_own(memo))
        return str(data["tensors"]) if data["files"] == state else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as cause:
        logger.info("the stored digest of the weights in %s is not used: %s", memo, cause)
        return None


def _write_memo(memo: Path, data: Mapping[str, Any]) -> None:
    """Store a digest in the cache, if the cache can be written."""
    try:
        private_folder(memo.parent)
        with atomic.replacing(memo, 0o600) as file:
            file.write(json.dumps(data).encode())
    except OSError as cause:
        logger.info("the digest of the weights is not stored in %s (%s)", memo, cause)
