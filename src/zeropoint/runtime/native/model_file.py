"""Model files: a whole model in one file, for programs that embed the C library (examples/c/generate.c reads them).

A file is a list of calls of native/include/zeropoint.h with their arguments, so a reader needs no config.json and no
JSON. docs/embed.md describes the layout.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from ctypes import c_char, c_float, c_int32, c_uint64
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

import numpy as np

from zeropoint.files import atomic
from zeropoint.kernels import library
from zeropoint.models.spec import ModelSpec
from zeropoint.runtime.native.library import Configuration, configuration, norm_vectors
from zeropoint.runtime.native.packed_weights import PackedWeights, check_vectors
from zeropoint.values.arrays import Bytes, Floats

MAGIC = b"zeropoint model\0"
ALIGNMENT = 64


class Kind(IntEnum):
    """The C function that a record is an argument list of."""

    LAYER = 0  # zp_decoder_layer
    ROPE = 1  # zp_decoder_rope
    LINEAR = 2  # zp_view, zp_decoder_linear
    NORM = 3  # zp_decoder_norm


class Head(ctypes.Structure):
    """The first bytes of the file. `version` is the ABI version of the library that reads it."""

    _fields_ = (
        ("magic", c_char * 16),
        ("version", c_int32),
        ("records", c_int32),
        ("bytes", c_uint64),
        ("config", Configuration),
        ("unused", c_int32 * 3),
    )


class Record(ctypes.Structure):
    """One call. `at` and `bias` are offsets of float32 values or a packed matrix; 0: there is none."""

    _fields_ = (
        ("kind", c_int32),
        ("layer", c_int32),
        ("slot", c_int32),  # LAYER: the rotation table
        ("count", c_int32),  # LAYER: the window
        ("scale", c_float),
        ("unused", c_int32),
        ("at", c_uint64),
        ("bytes", c_uint64),
        ("bias", c_uint64),
        ("format", library.Format),
    )


@dataclass(slots=True)
class _Data:
    """The data behind the records: each array is stored once, at a multiple of `ALIGNMENT`."""

    end: int
    parts: list[tuple[int, Bytes]] = field(default_factory=list)
    offsets: dict[int, int] = field(default_factory=dict)  # address of an array -> its offset

    def place(self, values: Bytes | Floats | None) -> int:
        """Return the offset of an array, which must outlive this object; 0 for None."""
        if values is None:
            return 0
        memory = values.view(np.uint8)
        if memory.ctypes.data not in self.offsets:
            at = -(-self.end // ALIGNMENT) * ALIGNMENT
            self.offsets[memory.ctypes.data] = at
            self.parts.append((at, memory))
            self.end = at + memory.nbytes
        return self.offsets[memory.ctypes.data]


def write(path: Path, spec: ModelSpec, packed_weights: PackedWeights) -> int:
    """Write the model file of a model's spec and packed weights, and return its bytes.

    Raises `OSError`, and `ArtifactError` or `SchemeError` if a weight is missing or has the wrong shape.
    """
    packed_weights.decoder(spec)  # what a reader will do: raises if a part does not fit
    check_vectors(spec, packed_weights.vectors)
    count = len(spec.ropes) + len(spec.layers) + len(list(spec.linears())) + len(list(spec.norms()))
    data = _Data(ctypes.sizeof(Head) + count * ctypes.sizeof(Record))
    records = list(_records(spec, packed_weights, data))
    head = Head(MAGIC, library.ABI_VERSION, len(records), data.end, configuration(spec.config))
    with atomic.replacing(path, 0o644) as file:
        file.write(bytes(head) + b"".join(map(bytes, records)))
        _write_parts(file, data)
    return data.end


def _records(spec: ModelSpec, packed_weights: PackedWeights, data: _Data) -> Iterator[Record]:
    for table, rope in enumerate(spec.ropes):
        frequency = np.ascontiguousarray(rope.inverse_frequency, np.float32)
        yield Record(Kind.ROPE, -1, table, len(frequency), rope.scale, at=data.place(frequency))
    for number, layer in enumerate(spec.layers):
        yield Record(Kind.LAYER, number, layer.table, layer.window)
    for number, slot, source in spec.linears():
        weight = packed_weights.weights[source.weight, source.rows]
        bias = None if source.bias is None else packed_weights.vectors[source.bias]
        if bias is not None and source.rows is not None:
            bias = bias[source.rows.index()]
        at = data.place(weight.memory)
        yield Record(
            Kind.LINEAR, number, slot, at=at, bytes=weight.nbytes, bias=data.place(bias), format=weight.format
        )
    for number, norm_slot, norm in spec.norms():
        scale, shift = norm_vectors(norm, packed_weights.vectors)
        yield Record(Kind.NORM, number, norm_slot, norm.size, at=data.place(scale), bias=data.place(shift))


def _write_parts(file: BinaryIO, data: _Data) -> None:
    for at, memory in data.parts:
        file.write(bytes(at - file.tell()))
        file.write(memory.data)
