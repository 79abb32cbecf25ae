"""One digest of the tensors in any number of safetensors files: sha256 over names, types, shapes and bytes.

Each tensor has a digest of its own; the digest of all is over these in the order of names. So it does not depend on
how tensors are spread over files, can be made while they are written, and is read with as many threads as there are
cores. Headers are read here, within bounds and without the safetensors library, which keeps what it reads in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zeropoint.errors import ArtifactError, ZeropointError
from zeropoint.files.json_file import ADVICE, parse_json

#: What safetensors allows a header.
MAX_HEADER_BYTES = 100_000_000
#: Bytes read at once by each thread.
PIECE = 1 << 20


@dataclass(slots=True)
class TensorDigest:
    """The digest of tensors that are told one by one, in any order."""

    _lines: list[str] = field(default_factory=list)

    def add(self, name: str, dtype: str, shape: Sequence[int], data: memoryview | bytes) -> None:
        """`dtype` by its safetensors name, `data` the bytes as they are stored."""
        self.add_hashed(name, dtype, shape, hashlib.sha256(data).hexdigest())

    def add_hashed(self, name: str, dtype: str, shape: Sequence[int], sha256: str) -> None:
        """The same for a tensor whose bytes' sha256 is known."""
        self._lines.append(json.dumps([name, dtype, list(shape), sha256]))

    def hexdigest(self) -> str:
        return hashlib.sha256("\n".join(sorted(self._lines)).encode()).hexdigest()


class _Entry(NamedTuple):
    """A tensor in a file: `start` and `size` in bytes, from the file's first."""

    path: Path
    name: str
    dtype: str
    shape: list[int]
    start: int
    size: int


def digest_files(files: Sequence[Path], error: type[ZeropointError] = ArtifactError) -> str:
    """Read all tensors of some safetensors files and return their digest.

    Raises `error` for a file that cannot be read or whose header is damaged.
    """
    from concurrent.futures import ThreadPoolExecutor

    total = TensorDigest()
    try:
        entries = [entry for path in files for entry in _entries(path)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for entry, sha256 in zip(entries, pool.map(_sha256, entries), strict=True):
                total.add_hashed(entry.name, entry.dtype, entry.shape, sha256)
    except (OSError, ValueError) as cause:
        words = " ".join(str(cause).split())[:200]
        where = files[0].parent if files else "the folder"
        raise error(
            f"the weights in {where} are truncated or not safetensors ({words}): {ADVICE[error]}"
        ) from cause
    return total.hexdigest()


def _sha256(entry: _Entry) -> str:
    found, buffer = hashlib.sha256(), memoryview(bytearray(min(PIECE, max(entry.size, 1))))
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        left = entry.size
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise ValueError(f"{entry.path.name} ends within {entry.name[:60]}")
            found.update(buffer[:count])
            left -= count
    return found.hexdigest()


def _entries(path: Path) -> Iterator[_Entry]:
    """The tensors that a file's header names. Raises `OSError` and `ValueError`."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, end - 8):
            raise ValueError(f"{path.name} has a header of {length} bytes")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} has no header")
    for name, said in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = said["data_offsets"]
            dtype, shape = said["dtype"], said["shape"]
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"{path.name} says nothing of where {name[:60]} lies") from None
        whole = [first, last, *(shape if isinstance(shape, list) else [None])]
        if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in whole):
            raise ValueError(f"{path.name} has a damaged entry for {name[:60]}")
        if not first <= last <= end - 8 - length:
            raise ValueError(f"{path.name} is cut off within {name[:60]}")
        yield _Entry(path, name, dtype, shape, 8 + length + first, last - first)
