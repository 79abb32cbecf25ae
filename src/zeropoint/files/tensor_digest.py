"""One digest of all tensors in safetensors files: sha256 over names, dtypes, shapes and bytes.

Each tensor is hashed alone; the digest is the sha256 of the sorted list of these hashes. So the digest does not depend
on how tensors are spread over files, can be computed while tensors are written, and is computed by several threads.
Headers are parsed here with limits, because the safetensors library keeps all bytes that it reads in memory.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from zeropoint.errors import ArtifactError, ZeropointError, reason
from zeropoint.files.json_file import ADVICE, parse_json
from zeropoint.machine.cores import usable_cores

#: Largest header that the safetensors format allows.
MAX_HEADER_BYTES = 100_000_000
#: Bytes that a thread reads at once.
PIECE = 1 << 20


@dataclass(slots=True)
class TensorDigest:
    """The digest of tensors that are added one by one, in any order."""

    _lines: list[str] = field(default_factory=list)

    def add(self, name: str, dtype: str, shape: Sequence[int], data: memoryview | bytes) -> None:
        """Add a tensor: its dtype by the safetensors name, its bytes as stored."""
        self.add_hashed(name, dtype, shape, hashlib.sha256(data).hexdigest())

    def add_hashed(self, name: str, dtype: str, shape: Sequence[int], sha256: str) -> None:
        """Add a tensor by the sha256 of its bytes."""
        self._lines.append(json.dumps([name, dtype, list(shape), sha256]))

    def hexdigest(self) -> str:
        """Return the digest of all tensors added so far, as hex."""
        return hashlib.sha256("\n".join(sorted(self._lines)).encode()).hexdigest()


class _Entry(NamedTuple):
    """A tensor in a file: its offset `start` from the beginning of the file, and its `size`, in bytes."""

    path: Path
    name: str
    dtype: str
    shape: list[int]
    start: int
    size: int


def digest_files(files: Sequence[Path], error: type[ZeropointError] = ArtifactError) -> str:
    """Return the digest of all tensors in these safetensors files.

    Raises `error` if a file cannot be read or its header is damaged.
    """
    from concurrent.futures import ThreadPoolExecutor

    total = TensorDigest()
    try:
        entries = [entry for path in files for entry in _entries(path)]
        with ThreadPoolExecutor(min(8, usable_cores())) as pool:
            for entry, sha256 in zip(entries, pool.map(_sha256, entries), strict=True):
                total.add_hashed(entry.name, entry.dtype, entry.shape, sha256)
    except (OSError, ValueError) as cause:
        where = files[0].parent if files else "the folder"
        raise error(
            f"the weights in {where} are truncated or not safetensors ({reason(cause)}): {ADVICE[error]}"
        ) from cause
    return total.hexdigest()


def _sha256(entry: _Entry) -> str:
    total, buffer = hashlib.sha256(), memoryview(bytearray(min(PIECE, max(entry.size, 1))))
    with entry.path.open("rb", buffering=0) as file:
        file.seek(entry.start)
        left = entry.size
        while left:
            count = file.readinto(buffer[: min(left, len(buffer))])
            if not count:
                raise ValueError(f"{entry.path.name} ends within {entry.name[:60]}")
            total.update(buffer[:count])
            left -= count
    return total.hexdigest()


def _entries(path: Path) -> Iterator[_Entry]:
    """Yield the tensors that a file's header names. Raises `OSError`, and `ValueError` for a damaged header."""
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= min(MAX_HEADER_BYTES, end - 8):
            raise ValueError(f"{path.name} has a header of {length} bytes")
        header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} has no header")
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        try:
            first, last = fields["data_offsets"]
            dtype, shape = fields["dtype"], fields["shape"]
        except (TypeError, KeyError, ValueError):
            raise ValueError(f"{path.name} has no type, shape and offsets for {name[:60]}") from None
        numbers = [first, last, *(shape if isinstance(shape, list) else [None])]
        if not isinstance(dtype, str) or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError(f"{path.name} has a damaged entry for {name[:60]}")
        if not first <= last <= end - 8 - length:
            raise ValueError(f"{path.name} is cut off within {name[:60]}")
        yield _Entry(path, name, dtype, shape, 8 + length + first, last - first)
