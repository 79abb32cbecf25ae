"""What an artifact says that it is, and whether it still is that.

The card of an artifact names three digests: of its tensors (`tensor_digest.py`), of its config.json, and of the card
itself. Whoever runs the artifact, or shows what its card says of quality, asks here for the doubts that there are.

Tensors are read whole only once: what they gave is remembered in the user's cache under the folder's path, beside the
device, inode, size and times of every file. Whatever replaces a file, or writes into it and sets its time back, changes
its inode or the time of its last change, which no program can set. `verify` reads all of it again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeropoint.errors import ArtifactError
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

#: The card's field, and what it holds.
FIELD = "digests"
KEYS = ("tensors", "config", "card")

#: A file that changed less than this before it was read may change again without another time: it is not remembered.
SETTLED_NS = 2_000_000_000

#: The folder within the user's cache that holds what is kept of artifacts: these memos, and packed weights.
MODELS = "models"

Files = list[list[str | int]]
"""Name, device, inode, size, and times of change of content and of anything, of every file of weights."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How an artifact stands to its card. `tensors` is the digest of the tensors that are there. `known`: the card
    names digests at all. `doubts`: sentences of what differs from them; empty where nothing does."""

    tensors: str
    known: bool
    doubts: tuple[str, ...]

    def sentence(self, folder: Path) -> str:
        """What to say of an artifact with doubts."""
        return f"{folder}: {'; '.join(self.doubts)}. What its card says of quality is of another state"


# -- the card -------------------------------------------------------------------------------------


def card_digest(card: Mapping[str, Any]) -> str:
    """Of a card without the digest of itself."""
    named = {key: value for key, value in (card.get(FIELD) or {}).items() if key != "card"}
    return json_digest({**card, FIELD: named})


def sealed(card: Mapping[str, Any], *, tensors: str, config: str) -> dict[str, Any]:
    """The card with its digests, to be written as it is."""
    named = {**card, FIELD: {"tensors": tensors, "config": config}}
    return {**named, FIELD: {**named[FIELD], "card": card_digest(named)}}


def standing(folder: Path, card: Mapping[str, Any] | None = None, *, verify: bool = False) -> Standing:
    """Hold an artifact folder against its card, which is read unless it is given.

    `verify` reads every tensor, whatever is remembered. Raises `ArtifactError` for files that cannot be read.
    """
    card = load_json(folder / CARD_NAME, MAX_CARD_BYTES) if card is None else card
    tensors = tensors_digest(folder, verify=verify)
    said = card.get(FIELD)
    if not isinstance(said, Mapping):
        return Standing(tensors, False, ())
    found = []
    if said.get("card") != card_digest(card):
        found.append(f"{CARD_NAME} was edited after it was written")
    if said.get("config") != config_digest(folder):
        found.append("config.json is not the one that it was made with")
    if said.get("tensors") != tensors:
        found.append("its weights are not those that it was made with: they were replaced or damaged")
    return Standing(tensors, True, tuple(found))


def doubts(folder: Path, card: Mapping[str, Any]) -> tuple[str, ...]:
    """`Standing.doubts`; of a card without digests nothing is read."""
    return standing(folder, card).doubts if isinstance(card.get(FIELD), Mapping) else ()


def say_doubts(folder: Path) -> None:
    """Warn, in the log, of an artifact that is not what its card says. Raises as `standing` does."""
    found = standing(folder)
    if found.doubts:
        logger.warning("%s", found.sentence(folder))


def verify(folder: Path) -> Standing:
    """`standing` by reading everything. Raises `ArtifactError` where there are doubts."""
    found = standing(folder, verify=True)
    if found.doubts:
        raise ArtifactError(
            f"{folder} is not what its card says: {'; '.join(found.doubts)}; make the artifact again, or copy it again "
            f"from where it is whole"
        )
    return found


def config_digest(folder: Path) -> str:
    """Of config.json's content, in whatever order it stands. Raises `ArtifactError`."""
    return json_digest(load_json(folder / "config.json"))


# -- the tensors ----------------------------------------------------------------------------------


def tensors_digest(folder: Path, *, verify: bool = False) -> str:
    """The digest of a folder's tensors, from the user's cache where no file has changed since it was made.

    Raises `ArtifactError` for a folder without weights and for damaged files.
    """
    files = shard_files(folder, ArtifactError)
    if not files:
        raise ArtifactError(f"{folder} holds no weights: make the artifact again")
    state = file_states(folder)
    memo = _memo_path(folder)
    if not verify and memo is not None and (known := _remembered(memo, state)) is not None:
        return known
    from zeropoint.files.tensor_digest import digest_files

    started = time.time_ns()
    found = digest_files(files)
    if state != file_states(folder):
        raise ArtifactError(f"the weights in {folder} changed while they were read: try again")
    newest = max(max(int(changed), int(written)) for *_, written, changed in state)
    if memo is not None and newest < started - SETTLED_NS:
        _remember(memo, {"folder": str(folder.resolve()), "files": state, "tensors": found})
    return found


def file_states(folder: Path) -> Files:
    """What tells that a file of weights is still the same. Raises `ArtifactError`."""
    try:
        return [
            [path.name, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns]
            for path in shard_files(folder, ArtifactError)
            for s in [path.stat()]
        ]
    except OSError as cause:
        raise ArtifactError(f"the weights in {folder} cannot be read ({cause.strerror})") from cause


def _memo_path(folder: Path) -> Path | None:
    cache = default_folder()
    name = short_sha256(os.fsencode(folder.resolve()))[:32]
    return None if cache is None else cache / MODELS / f"{name}.json"


def _remembered(memo: Path, state: Files) -> str | None:
    try:
        data = parse_json(read_own(memo))
        return str(data["tensors"]) if data["files"] == state else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as cause:
        logger.info("what is remembered of the weights in %s is not used: %s", memo, cause)
        return None


def _remember(memo: Path, data: Mapping[str, Any]) -> None:
    temporary = memo.with_name(f"{memo.name}.{os.getpid()}-{time.monotonic_ns()}")
    try:
        private_folder(memo.parent)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(data, file)
        os.replace(temporary, memo)
    except OSError as cause:
        logger.info("the digest of the weights is not remembered in %s (%s)", memo, cause)
        with suppress(OSError):
            temporary.unlink()
