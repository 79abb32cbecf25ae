"""Packed files: a model's weights in the kernels' layout, memory-mapped and verified by checksums.

Packed files lie in the user's cache, never beside an artifact, so a downloaded artifact cannot bring its own. A file
contains its key (see `kept.packed_key`) and a checksum of every blob. A file is used only if the user owns it and
nobody else can write to it; otherwise the weights are packed again from the artifact. Layout: `MAGIC`; offset, length
and CRC-32 of the index (little-endian uint64); blobs at multiples of 64 bytes; the index in JSON. The layout is the
same for all instruction sets.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path
from typing import IO, Any

import numpy as np

from zeropoint.errors import SchemeError, UnsupportedError, reason
from zeropoint.files import atomic
from zeropoint.files.json_file import parse_json
from zeropoint.files.user_folder import open_own
from zeropoint.kernels import library
from zeropoint.models.spec import Rows
from zeropoint.runtime.native.library import Weight, view
from zeropoint.runtime.native.packed_weights import Packed, PackedWeights
from zeropoint.values.arrays import Bytes

VERSION = 2
NAME = f"packed {library.ABI_VERSION}.{VERSION}"
"""Version of the file layout and of the kernels' layout; part of every key."""

MAGIC = b"zeropoint packed"
ALIGNMENT = 64
PIECE = 2 << 20  # a large page of x86-64
MAX_INDEX_BYTES = 64 << 20
_HEAD = struct.Struct("<16sQQQ")

_FORMAT_FIELDS = tuple(name for name, _ in library.Format._fields_)
_ROWS_FIELDS = tuple(field.name for field in fields(Rows))


class StoreError(Exception):
    """Error: the file is outdated or damaged. The caller logs "the packed file" + message, and packs again."""


# -- writing --------------------------------------------------------------------------------------


def write(path: Path, key: str, packed: Iterable[Packed]) -> None:
    """Write a packed file from the stream `packed`, holding one weight in memory at a time.

    The file is written under a temporary name and renamed when complete; only its user may read it. Raises `OSError` if
    the file cannot be written, and the errors of the stream.
    """
    with atomic.replacing(path, 0o600) as file:
        _write(file, key, packed)


class _Pieces:
    """A buffered writer that passes the data on in pieces of exactly `PIECE` bytes.

    The file system can then keep each piece in one large page. With pages of 4 KiB, reading weights costs a page-table
    walk every 64 cache lines.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.position = 0
        self._file = file
        self._buffer = bytearray()

    def write(self, part: bytes | memoryview) -> None:
        rest = memoryview(part).cast("B")
        self.position += len(rest)
        while len(self._buffer) + len(rest) >= PIECE:
            missing = PIECE - len(self._buffer)
            self._file.write(self._buffer + rest[:missing] if self._buffer else rest[:missing])
            self._buffer.clear()
            rest = rest[missing:]
        self._buffer += rest

    def finish(self) -> None:
        self._file.write(self._buffer)


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
    """Map the file and return its weights and vectors, which use the mapped memory without a copy.

    Raises `StoreError` if the file is outdated or damaged, `UntrustedError` if others could have written it, and
    `OSError` if it cannot be opened.
    """
    with open_own(path) as file:
        if os.fstat(file.fileno()).st_size < ALIGNMENT:
            raise StoreError("is cut off")
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with contextlib.suppress(OSError):  # only a hint: an operating system without large pages refuses it
        mapped.madvise(mmap.MADV_HUGEPAGE)
    memory: Bytes = np.frombuffer(mapped, np.uint8)
    try:
        index = _index(memory)
        if index["key"] != key:
            raise StoreError("belongs to another state of the artifact")
        return _packed_weights(memory, index["entries"])
    except (KeyError, TypeError, ValueError, ArithmeticError, SchemeError, UnsupportedError) as cause:
        raise StoreError(f"is damaged ({reason(cause, 100)})") from cause


def _index(memory: Bytes) -> dict[str, Any]:
    magic, at, length, crc = _HEAD.unpack_from(memory.data)
    if magic != MAGIC:
        raise StoreError("does not begin with the magic bytes of a packed file")
    index = memory[at : at + length].tobytes() if length <= MAX_INDEX_BYTES else b""
    if len(index) != length or zlib.crc32(index) != crc:
        raise StoreError("is cut off or damaged")
    contents: dict[str, Any] = parse_json(index)
    return contents


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
        if [getattr(format, field) for field in _FORMAT_FIELDS] != entry[
            "format"
        ]:  # ctypes cuts off large numbers
            raise StoreError(f"is damaged at {name}")
        rows = None if entry["rows"] is None else Rows(*entry["rows"])
        packed_weights.add(Packed(name, rows, view(format, blob)))
    return packed_weights


#: Number of 8-byte words that are summed before weighting: one page of 4 KiB.
_BLOCK = 512


def checksum(memory: Bytes) -> int:
    """Return a 64-bit checksum: the sum of all pages, each multiplied by a different odd factor.

    It runs at memory speed and detects changed, zeroed, missing and swapped pages and flipped bits. It does not protect
    against deliberate forgery.
    """
    whole = memory.nbytes // (8 * _BLOCK) * (8 * _BLOCK)
    sums = memory[:whole].view(np.uint64).reshape(-1, _BLOCK).sum(axis=1, dtype=np.uint64)
    factors = np.arange(1, 2 * len(sums), 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    total = int((sums * factors).sum(dtype=np.uint64)) + zlib.crc32(memory[whole:].data)
    return (total + memory.nbytes) & 0xFFFF_FFFF_FFFF_FFFF
