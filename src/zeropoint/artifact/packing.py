"""Packing of codes of 2 to 8 bits into 32-bit words, in the layout of compressed-tensors' `pack_to_int32`.

Codes become unsigned (`code + 2^(bits-1)`). Code `i` of a row takes bits `i*bits` to `(i+1)*bits - 1` of the row's
little-endian bit string, so a code crosses words if `bits` does not divide 32. Only the last word of a row is padded,
with zeros. This is the layout on disk; native/core/pack.cpp packs codes for the kernels, in a layout of their own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.arrays import Int32s
from zeropoint.values.scheme import ceil_div


def pack(codes: NDArray[np.int8], bits: int, *, axis: int = 1) -> Int32s:
    """Pack int8 codes `[rows, columns]` along `axis` into int32 words; `n` codes take `ceil(n * bits / 32)` words."""
    if axis == 0:
        return np.ascontiguousarray(pack(codes.T, bits).T)
    rows, columns = codes.shape
    words = ceil_div(columns * bits, 32)
    unsigned = (codes.astype(np.int16) + (1 << (bits - 1))).astype(np.uint8)
    if bits == 4:  # the most common width has a faster way
        even = np.zeros((rows, words * 8), dtype=np.uint8)
        even[:, :columns] = unsigned
        return (even[:, 0::2] | (even[:, 1::2] << 4)).view("<i4").astype(np.int32, copy=False)
    stream = np.zeros((rows, words * 32), dtype=np.uint8)
    each = np.unpackbits(unsigned[:, :, None], axis=2, bitorder="little", count=bits)
    stream[:, : columns * bits] = each.reshape(rows, columns * bits)
    return np.packbits(stream, axis=1, bitorder="little").view("<i4").astype(np.int32, copy=False)


def unpack(words: NDArray[Any], bits: int, count: int, *, axis: int = 1) -> NDArray[np.int8]:
    """Return the int8 codes, `count` along `axis`, that `pack` put into these words.

    Raises `SchemeError` if the number of words is wrong or the padding is not zero.
    """
    if axis == 0:
        return np.ascontiguousarray(unpack(words.T, bits, count).T)
    rows, width = words.shape
    if width != ceil_div(count * bits, 32):
        raise SchemeError(
            f"{count} codes of {bits} bits take {ceil_div(count * bits, 32)} words, not {width}"
        )
    raw = np.ascontiguousarray(words.astype("<i4", copy=False)).view(np.uint8)
    if bits == 4:
        unsigned = np.empty((rows, raw.shape[1] * 2), dtype=np.uint8)
        unsigned[:, 0::2] = raw & 0xF
        unsigned[:, 1::2] = raw >> 4
        spare = unsigned[:, count:]
        unsigned = unsigned[:, :count]
    else:
        stream = np.unpackbits(raw, axis=1, bitorder="little")
        stream, spare = stream[:, : count * bits], stream[:, count * bits :]
        unsigned = np.packbits(stream.reshape(rows, count, bits), axis=2, bitorder="little")[:, :, 0]
    if spare.any():
        raise SchemeError(
            f"packed words hold more than {count} codes of {bits} bits: their padding is not zero"
        )
    return np.ascontiguousarray((unsigned.astype(np.int16) - (1 << (bits - 1))).astype(np.int8))
