"""Files of hidden states, from which an interrupted streamed run continues.

A file holds the hidden states of all windows at one block's input, under a name that is the digest of everything that
the states depend on (as in `reference_cache.py`, and the dtype). It lies in the user's cache folder and is replaced in
one step, so a kill at any moment leaves the old or the new states. File layout: a line with the SHA-256 of the rest; a
line of JSON; the states' bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import Any, cast

import torch

from zeropoint.errors import reason
from zeropoint.files.atomic import replacing
from zeropoint.files.json_file import json_digest
from zeropoint.files.user_folder import open_own, private_folder, remove_old

logger = logging.getLogger(__name__)

PREFIX = "hidden-states-"
#: The share of a run's time that writing may take.
SHARE = 0.02
#: Most files in the folder, and the seconds after which a file is removed: a run that nobody continued.
MOST_FILES, ABANDONED = 4, 7 * 86400
#: Most bytes of a file: larger states are not kept.
MOST_BYTES = 4 << 30


class HiddenStates:
    """The file of one run in `folder` under `key`; without a folder nothing is kept."""

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self._path = None if folder is None else folder / f"{PREFIX}{json_digest(dict(key))[:32]}"
        self._written, self._cost = time.monotonic(), 0.0

    def read(self) -> tuple[int, list[torch.Tensor]] | None:
        """Return the number of finished blocks and the next block's inputs; None without a sound file."""
        if self._path is None:
            return None
        try:
            with open_own(self._path) as file:
                checksum, line = file.readline().strip(), file.readline()
                header = json.loads(line)
                states = torch.empty(header["shape"], dtype=getattr(torch, header["dtype"]))
                memory = _bytes(states)
                if cast(BufferedReader, file).readinto(memory) != memory.nbytes or file.read(1):
                    raise ValueError("it is cut off")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as cause:
            logger.warning("the hidden states in %s are not used: %s", self._path, cause)
            return None
        if _checksum(line, [states]) != checksum:
            logger.warning("the hidden states in %s are not used: they are damaged", self._path)
            return None
        # each window in memory of its own, aligned like that of an uninterrupted run, for the same bits
        return int(header["done"]), [states[i : i + 1].clone() for i in range(len(states))]

    def write(self, done: int, states: Sequence[torch.Tensor], *, is_last: bool) -> None:
        """Keep the states after `done` blocks, if writing takes at most `SHARE` of the time; always after the last.

        A failure is logged, not raised.
        """
        started = time.monotonic()
        is_early = not is_last and SHARE * (started - self._written) < self._cost
        nbytes = sum(state.nbytes for state in states)
        if self._path is None or is_early or nbytes > MOST_BYTES:
            return
        header = {
            "done": done,
            "shape": [len(states), *states[0].shape[1:]],
            "dtype": str(states[0].dtype).removeprefix("torch."),
        }
        line = json.dumps(header).encode() + b"\n"
        try:
            self._make_room(private_folder(self._path.parent))
            with replacing(self._path, 0o600, durable=True) as file:
                file.write(_checksum(line, states) + b"\n" + line)
                for state in states:
                    file.write(_bytes(state.contiguous()))
        except OSError as cause:
            logger.warning("hidden states are not kept in %s: %s", self._path.parent, reason(cause))
        self._written = time.monotonic()
        self._cost = self._written - started

    def forget(self) -> None:
        """Remove the file."""
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()

    def _make_room(self, folder: Path) -> None:
        """Remove the files of abandoned runs, and the oldest ones beyond `MOST_FILES`."""
        others = (file for file in folder.glob(f"{PREFIX}*") if file != self._path)
        remove_old(others, most_files=MOST_FILES - 1, most_seconds=ABANDONED)


def _bytes(state: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor."""
    memory: memoryview = state.view(torch.uint8).numpy().data
    return memory


def _checksum(line: bytes, states: Sequence[torch.Tensor]) -> bytes:
    """Return the SHA-256 of a file's JSON line and states, in hexadecimal digits."""
    digest = hashlib.sha256(line)
    for state in states:
        digest.update(_bytes(state.contiguous()))
    return digest.hexdigest().encode()
