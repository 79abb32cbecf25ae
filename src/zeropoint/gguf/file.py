"""Reading GGUF files, one tensor at a time: the counterpart of `files/safetensors_file.py`.

A large model has several part files, `name-00001-of-00003.gguf` and so on. The first part has the model's metadata;
each part has its own tensors. Opening any part opens all.

The reader of the `gguf` package trusts the header. This reader does not: before it allocates memory, it checks every
count, length and offset against the file's size, and it limits the header's size. So a damaged file raises an error
and takes no memory. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any, TypeVar

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, UnsupportedError, ZeropointError, reason
from zeropoint.gguf import types

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # version 1 has 32-bit counts; no tool writes it any more
MAX_HEADER_BYTES = 128 << 20  # a vocabulary of 256,000 tokens with merges takes 12 MB
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16

#: Metadata value types of fixed size: type number in the file -> code of the type in `struct` and numpy.
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9


#: File name of a part; numbers start at 1.
PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 10_000

PathKind = TypeVar("PathKind", bound=PurePath)


@dataclass(frozen=True, slots=True)
class Entry:
    """Type and place of a tensor: `nbytes` bytes from byte `start` of file number `part` (from 0).

    `shape` is in numpy's order, `[out, in]` for a matrix.
    """

    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    start: int
    nbytes: int
    part: int = 0


class GgufFile:
    """One open GGUF model: `metadata` as plain values, `tensors` by name, and its `files`. Data is memory-mapped.

    Raises `error` (a `ZeropointError` class) if a file is missing or truncated, or has a damaged header.
    """

    def __init__(self, path: Path, error: type[ZeropointError] = CheckpointError) -> None:
        self.path = path
        self._error = error
        header, data = _open(path, error)
        self.metadata: Mapping[str, Any] = header.metadata
        self.tensors: Mapping[str, Entry] = header.tensors
        self.files: tuple[Path, ...] = (path,)
        self._data = [data]
        if header.count("split.count") > 1:
            self._open_parts(header, data)

    def _open_parts(self, own_header: _Header, own_data: mmap.mmap) -> None:
        """Open all parts of the model. `path` is one of them, with the header and data given."""
        count, number = own_header.count("split.count"), own_header.count("split.no") + 1
        name = PART.fullmatch(self.path.name)
        if name is None or int(name["count"]) != count or int(name["number"]) != number:
            raise self._error(
                f"{self.path} is part {number} of {count} of a model: rename each part to its original name, which "
                f"ends in -{number:05d}-of-{count:05d}.gguf"
            )
        self.files = tuple(self.path.with_name(each) for each in part_names(self.path.name))
        if missing := [file.name for file in self.files if not file.is_file()]:
            raise self._error(
                f"{self.path} is part {number} of {count} of a model, and {missing[0]} is missing beside it: download "
                "all parts into one folder"
            )
        parts = [
            (own_header, own_data) if file == self.path else _open(file, self._error) for file in self.files
        ]
        self.metadata, self._data = parts[0][0].metadata, [data for _, data in parts]
        tensors: dict[str, Entry] = {}
        for part, (header, _) in enumerate(parts):
            if (header.count("split.no"), header.count("split.count")) != (part, count):
                raise self._error(f"{self.files[part]} is not part {part + 1} of {count}, as its name says")
            for tensor, entry in header.tensors.items():
                if tensor in tensors:
                    raise self._error(f"{self.files[part]} holds {tensor[:60]!r}, as an earlier part does")
                tensors[tensor] = replace(entry, part=part)
        stated = parts[0][0].count("split.tensors.count")
        if stated and stated != len(tensors):
            raise self._error(f"{self.path}: all parts hold {len(tensors)} tensors, the first says {stated}")
        self.tensors = tensors

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Return the stored bytes of a tensor, uint8 `[..., bytes of a row]`: a view of the mapped file."""
        entry = self._entry(name)
        row = types.nbytes(entry.shape[-1:], entry.kind)
        data = np.frombuffer(self._data[entry.part], np.uint8, entry.nbytes, entry.start)
        return data.reshape(*entry.shape[:-1], row)

    def floats(self, name: str) -> NDArray[np.float32]:
        """Return a tensor in float32, dequantized by the `gguf` package.

        Raises `UnsupportedError` for a type that the package cannot dequantize.
        """
        entry = self._entry(name)
        try:
            values = np.asarray(dequantize(self.raw(name), entry.kind), np.float32)
        except NotImplementedError:
            raise UnsupportedError(
                f"{self.path.name}: tensor {name} has the type {entry.kind.name}, which cannot be read here"
            ) from None
        return values.reshape(entry.shape)

    def _entry(self, name: str) -> Entry:
        """Return a tensor's type and place. Raises the file's error if there is no such tensor."""
        entry = self.tensors.get(name)
        if entry is None:
            raise self._error(f"{self.path} has no tensor {name}")
        return entry


def first_parts(paths: Iterable[PathKind]) -> list[PathKind]:
    """Return the paths in order, but only the first part of each model in parts."""
    models: dict[PurePath, PathKind] = {}
    for path in sorted(paths):
        name = PART.fullmatch(path.name)
        models.setdefault(path.with_name(f"{name['stem']} of {name['count']}") if name else path, path)
    return list(models.values())


def part_names(file: str) -> list[str]:
    """Return the names of all parts of the model of which `file` (with its folder) is a part; else `file` alone."""
    name = PART.fullmatch(file)
    if name is None or int(name["count"]) > MAX_PARTS:
        return [file]
    count = int(name["count"])
    return [f"{name['stem']}-{each:05d}-of-{count:05d}.gguf" for each in range(1, count + 1)]


def _open(path: Path, error: type[ZeropointError]) -> tuple[_Header, mmap.mmap]:
    """Return the header of one file, and the file's mapped bytes. Raises `error`."""
    try:
        with path.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise error(f"{path} is missing") from None
    except (OSError, ValueError) as cause:  # an empty file cannot be mapped
        raise error(f"{path} is not a GGUF file ({reason(cause)})") from cause
    try:
        return _Header(data), data
    except _DamageError as cause:
        raise error(f"{path} is not a sound GGUF file: {cause}") from None


class _DamageError(Exception):
    """A damaged header; the message says what is wrong."""


class _Header:
    """A parsed header: `metadata` and `tensors`. The parser's cursor `_at` never passes the end of the file.

    Raises `_DamageError` for a damaged header.
    """

    def __init__(self, data: mmap.mmap) -> None:
        self._data = data
        self._end = min(len(data), MAX_HEADER_BYTES)
        self._at = 0
        if self._take(4) != MAGIC:
            raise _DamageError("it does not begin with GGUF")
        version = self._number("I")
        if version not in VERSIONS:
            raise _DamageError(f"its version is {version}; versions 2 and 3 are read")
        tensors, keys = self._number("Q"), self._number("Q")
        self._check_count(keys, 13, "keys")
        self._check_count(tensors, 24, "tensors")
        self.metadata = dict(self._pair() for _ in range(keys))
        self.tensors = self._place([self._tensor() for _ in range(tensors)])

    def count(self, key: str) -> int:
        """Return a whole number of the metadata; 0 if it is missing, negative, too large, or no number."""
        value = self.metadata.get(key, 0)
        return value if type(value) is int and 0 <= value <= MAX_PARTS * MAX_PARTS else 0

    def _take(self, count: int) -> bytes:
        """Return the next `count` bytes and move the cursor behind them."""
        stop = self._at + count
        if stop > self._end:
            if stop > len(self._data):
                raise _DamageError("it ends inside its header")
            raise _DamageError(f"its header is larger than {MAX_HEADER_BYTES >> 20} MB")
        taken = self._data[self._at : stop]
        self._at = stop
        return taken

    def _number(self, code: str) -> Any:
        """Return the next number, of the type `code` of `struct`."""
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _check_count(self, count: int, least_bytes: int, what: str) -> None:
        """Raise `_DamageError` if `count` items of at least `least_bytes` bytes cannot be left in the header."""
        if count * least_bytes > self._end - self._at:
            raise _DamageError(f"it claims {count} {what}, more than it has room for")

    def _text(self) -> str:
        """Return the next text: its length, then UTF-8."""
        try:
            return self._take(self._number("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise _DamageError("a text in its header is not UTF-8") from None

    def _texts(self, count: int) -> list[str]:
        """Return the next `count` texts. One loop without calls: a vocabulary has a quarter of a million texts."""
        data, at, end, length = self._data, self._at, self._end, struct.Struct("<Q").unpack_from
        texts = []
        try:
            for _ in range(count):
                start = at + 8
                if start > end:
                    self._take(end + 1)
                at = start + length(data, start - 8)[0]
                if at > end:
                    self._take(end + 1)
                texts.append(data[start:at].decode("utf-8"))
        except UnicodeDecodeError:
            raise _DamageError("a text in its header is not UTF-8") from None
        self._at = at
        return texts

    def _pair(self) -> tuple[str, Any]:
        """Return the next key of the metadata and its value."""
        key = self._text()
        return key, self._value(self._number("I"), key)

    def _value(self, kind: int, key: str) -> Any:
        """Return the next value, of the type number `kind`."""
        if kind in SCALARS:
            return self._number(SCALARS[kind])
        if kind == STRING:
            return self._text()
        if kind != ARRAY:
            raise _DamageError(f"{key[:60]!r} has the value type {kind}, which does not exist")
        inner, count = self._number("I"), self._number("Q")
        if inner == STRING:
            self._check_count(count, 8, "texts")
            return self._texts(count)
        if inner not in SCALARS:
            raise _DamageError(f"{key[:60]!r} is an array of the type {inner}, which is not read")
        dtype = np.dtype(f"<{SCALARS[inner]}" if SCALARS[inner] != "?" else "?")
        self._check_count(count, dtype.itemsize, "numbers")
        return np.frombuffer(self._take(count * dtype.itemsize), dtype)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Return the next tensor's `(name, shape in numpy's order, type, offset)`, not yet checked."""
        name = self._text()
        dimensions = self._number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise _DamageError(f"tensor {name[:60]!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return name, shape, self._number("I"), self._number("Q")

    def _place(self, tensors: list[tuple[str, tuple[int, ...], int, int]]) -> dict[str, Entry]:
        """Return the entries by name, after checking that they lie inside the file and do not overlap."""
        alignment = self.metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise _DamageError(f"its alignment is {alignment!r}, not a power of two")
        base = -(-self._at // alignment) * alignment
        entries: dict[str, Entry] = {}
        end = base
        for name, shape, kind, offset in sorted(tensors, key=lambda each: each[3]):
            nbytes = _nbytes(name, shape, kind)
            start = base + offset
            if offset % alignment or start < end or start + nbytes > len(self._data):
                raise _DamageError(
                    f"tensor {name[:60]!r} lies outside the file or overlaps another one; the file is truncated or was "
                    "changed"
                )
            if name in entries:
                raise _DamageError(f"it holds the tensor {name[:60]!r} twice")
            entries[name] = Entry(GGMLQuantizationType(kind), shape, start, nbytes)
            end = start + nbytes
        return {name: entries[name] for name, _, _, _ in tensors}


def _nbytes(name: str, shape: tuple[int, ...], kind: int) -> int:
    """Return the bytes of a tensor. Raises `_DamageError` for an unknown type or a shape that does not suit it."""
    if kind not in GGML_QUANT_SIZES:
        raise _DamageError(f"tensor {name[:60]!r} has the type {kind}, which is not known")
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    if shape[-1] % block or not all(shape):
        raise _DamageError(f"tensor {name[:60]!r} of shape {shape} does not fit blocks of {block}")
    return types.nbytes(shape, GGMLQuantizationType(kind))
