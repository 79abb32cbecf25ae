"""Packed files: a model's weights in the kernels' layout, mapped in one piece, checked by content.

They lie in the user's cache, never beside an artifact: whoever ships an artifact does not decide what is run. The
artifact stays the truth. A file is named by what it was made from, carries that key and a checksum of every blob, and
is read only if its user made it and nobody else can write to it; otherwise it is made again. Layout: `MAGIC` and where
the index lies (offset, length and CRC-32, little-endian uint64), blobs at multiples of 64 bytes, the index in JSON. No
instruction set changes it.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import threading
import zlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from zeropoint.errors import SchemeError, UnsupportedError
from zeropoint.files.json_file import parse_json
from zeropoint.files.user_folder import open_own
from zeropoint.kernels import library
from zeropoint.models.spec import Rows
from zeropoint.runtime.native.library import Bytes, Weight, view
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights

VERSION = 2
NAME = f"packed {library.ABI_VERSION}.{VERSION}"
"""What decides the layout of a file beside what it holds."""

MAGIC = b"zeropoint packed"
ALIGNMENT = 64
PIECE = 2 << 20  # a large page of x86-64
MAX_INDEX_BYTES = 64 << 20
_HEAD = struct.Struct("<16sQQQ")

_FORMAT_FIELDS = tuple(name for name, _ in library.Format._fields_)
_ROWS_FIELDS = tuple(field.name for field in fields(Rows))


class StoreError(Exception):
    """The file is stale or damaged; the message ends "the packed file ...". Never reaches a user as an error."""


# -- writing --------------------------------------------------------------------------------------


def write(path: Path, key: str, packed: Iterable[Packed]) -> None:
    """Write the file as the weights arrive, holding one at a time; it gets its name when it is whole. Its user alone
    may read it.

    Raises `OSError` when the folder does not take it, and what the stream raises.
    """
    # not `tempfile`: its import costs a megabyte of every process that only reads
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            _write(file, key, packed)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


class _Pieces:
    """Writes in whole pieces, wherever the parts end: a file system keeps such a piece in one large page, which is
    then mapped as one. Reading weights through pages of 4 KiB takes a walk through the page tables every 64 lines."""

    def __init__(self, file: IO[bytes]) -> None:
        self.position = 0
        self._file = file
        self._begun = bytearray()

    def write(self, part: bytes | memoryview) -> None:
        rest = memoryview(part).cast("B")
        self.position += len(rest)
        while len(self._begun) + len(rest) >= PIECE:
            missing = PIECE - len(self._begun)
            self._file.write(self._begun + rest[:missing] if self._begun else rest[:missing])
            self._begun.clear()
            rest = rest[missing:]
        self._begun += rest

    def finish(self) -> None:
        self._file.write(self._begun)


def _write(file: IO[bytes], key: str, packed: Iterable[Packed]) -> None:
    pieces = _Pieces(file)
    pieces.write(bytes(ALIGNMENT))
    entries: list[dict[str, Any]] = []
    for part in packed:
        memory = part.value.memory if isinstance(part.value, Weight) else part.value.view(np.uint8)
        entry = {"name": part.name, "at": pieces.position, "bytes": memory.nbytes, "sum": checksum(memory)}
        if isinstance(part.value, Weight):
            entry["rows"] = part.rows and [getattr(part.rows, field) for field in _ROWS_FIELDS]
            entry["format"] = [getattr(part.value.format, field) for field in _FORMAT_FIELDS]
        entries.append(entry)
        pieces.write(memory.data)
        pieces.write(bytes(-memory.nbytes % ALIGNMENT))
    at, index = pieces.position, json.dumps({"key": key, "entries": entries}).encode()
    pieces.write(index)
    pieces.finish()
    file.seek(0)
    file.write(_HEAD.pack(MAGIC, at, len(index), zlib.crc32(index)))


# -- reading --------------------------------------------------------------------------------------


def read(path: Path, key: str) -> PackedWeights:
    """Map the file and return its weights and vectors over that memory.

    Raises `StoreError`, `UntrustedError` for a file that is not the user's own, and `OSError` where there is none."""
    with open_own(path) as file:
        if os.fstat(file.fileno()).st_size < ALIGNMENT:
            raise StoreError("is cut off")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(OSError):  # only a hint, which a kernel without large pages refuses
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory: Bytes = np.frombuffer(mapped, np.uint8)
    try:
        index = _index(memory)
        if index["key"] != key:
            raise StoreError("belongs to another state of the artifact")
        return _packed_weights(memory, index["entries"])
    except (KeyError, TypeError, ValueError, ArithmeticError, SchemeError, UnsupportedError) as cause:
        raise StoreError(f"is damaged ({' '.join(str(cause).split())[:100]})") from cause


def _index(memory: Bytes) -> dict[str, Any]:
    magic, at, length, crc = _HEAD.unpack_from(memory.data)
    if magic != MAGIC:
        raise StoreError("does not begin like one")
    index = memory[at : at + length].tobytes() if length <= MAX_INDEX_BYTES else b""
    if len(index) != length or zlib.crc32(index) != crc:
        raise StoreError("is cut off or damaged")
    found: dict[str, Any] = parse_json(index)
    return found


def _packed_weights(memory: Bytes, entries: Iterable[dict[str, Any]]) -> PackedWeights:
    packed_weights = PackedWeights()
    for entry in entries:
        at, size, name = entry["at"], entry["bytes"], entry["name"]
        blob = memory[at : at + size]
        if blob.nbytes != size or checksum(blob) != entry["sum"]:
            raise StoreError(f"is damaged at {name}")
        if "format" not in entry:
            packed_weights.add(Packed(name, None, blob.view(np.float32)))
            continue
        format = library.Format(**dict(zip(_FORMAT_FIELDS, entry["format"], strict=True)))
        rows = None if entry["rows"] is None else Rows(*entry["rows"])
        packed_weights.add(Packed(name, rows, view(format, blob)))
    return packed_weights


#: Words of 8 bytes that are summed before they are weighted: a page.
_BLOCK = 512


def checksum(memory: Bytes) -> int:
    """A 64-bit sum in which every page counts with another odd factor, as fast as memory is read.

    It finds changed, zeroed, missing and exchanged pages and flipped bits. It is no defence against somebody who
    means to deceive, who could as well replace the artifact.
    """
    whole = memory.nbytes // (8 * _BLOCK) * (8 * _BLOCK)
    sums = memory[:whole].view(np.uint64).reshape(-1, _BLOCK).sum(axis=1, dtype=np.uint64)
    factors = np.arange(1, 2 * len(sums), 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    total = int((sums * factors).sum(dtype=np.uint64)) + zlib.crc32(memory[whole:].data)
    return (total + memory.nbytes) & 0xFFFF_FFFF_FFFF_FFFF
