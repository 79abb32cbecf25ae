"""GGUF block types that no Zeropoint `Scheme` describes: K-quants, whose blocks of 256 weights are called super-blocks.

Two plain types of 32 weights are here as well: Q4_1 and Q5_1 with any FP16 minimum. (`blocks.py` also reads and writes
Q4_1, for Zeropoint's weights of at most 4 bits with a zero_point.)

A K-quant has two-level scales. A block of 256 weights of one row shares an FP16 scale `d` (some types also an FP16
`dmin`). Each group of 16 or 32 weights in the block has a small integer `s` (some types also `m`). A weight `w` follows
from its stored unsigned code `q`::

    Q6_K   w = (d * s) * (q - 32)          q in 0..63, s int8,      16 groups of 16     210 bytes
    Q5_K   w = (d * s) * q - dmin * m      q in 0..31, s, m 6 bits,  8 groups of 32     176 bytes
    Q4_K   w = (d * s) * q - dmin * m      q in 0..15, s, m 6 bits,  8 groups of 32     144 bytes
    Q3_K   w = (d * s) * (q - 4)           q in 0..7,  s in -32..31, 16 groups of 16    110 bytes
    Q5_1   w = d * q + m                   q in 0..31, m FP16,       a block of 32       24 bytes
    Q4_1   w = d * q + m                   q in 0..15, m FP16,       a block of 32       20 bytes

`SuperTensor` holds the centred code: `q - 32` for Q6_K, `q - 4` for Q3_K, `q` otherwise. It holds Q5_1 and Q4_1 in the
form of Q5_K, with one group per block: the integers `s` and `m` are 1, and `dmin` is the FP16 minimum with its sign
changed. `encode` writes the fields of a block in this order (sizes in bytes)::

    Q6_K   low 4 bits of q [128], upper 2 bits [64], s [16], d [2]
    Q5_K   d [2], dmin [2], s and m [12], bit 4 of q [32], low 4 bits [128]
    Q4_K   d [2], dmin [2], s and m [12], q [128]
    Q3_K   bit 2 of q [32], low 2 bits [64], s + 32 [12], d [2]
    Q5_1   d [2], m [2], bit 4 of q [4], low 4 bits [16]
    Q4_1   d [2], m [2], q [16]

Layouts: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.arrays import Bytes, Codes, Floats, Int16s
from zeropoint.values.qtensor import Weight
from zeropoint.values.scheme import Scheme

Kind = GGMLQuantizationType

#: Mask of a byte's low nibble.
LOW = np.uint8(15)


@dataclass(frozen=True, slots=True)
class Format:
    """The parameters of one block type.

    - `bits`: bits per code;
    - `group`, `groups`: weights per group, groups per block;
    - `most`: the largest `s`; 1 for Q5_1 and Q4_1, where a block is one group;
    - `signed`: codes are centred on 0 and `s` may be negative. Otherwise codes start at 0 and the type has a minimum.
    """

    bits: int
    group: int
    groups: int
    most: int
    signed: bool

    @property
    def block(self) -> int:
        """Return the number of weights in a block."""
        return self.group * self.groups

    @property
    def scheme(self) -> Scheme:
        """Return a scheme with the same bits and groups, and float32 scales.

        If the format is not `signed`, the scheme is asymmetric: its codes are this format's minus `1 << (bits - 1)`.
        """
        return Scheme(self.bits, "group", self.group, self.signed, "fp32")

    @property
    def low(self) -> int:
        """Return the smallest centred code."""
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
        """Return the largest centred code."""
        return self.low + (1 << self.bits) - 1


FORMATS: Mapping[GGMLQuantizationType, Format] = {
    Kind.Q6_K: Format(6, 16, 16, 127, True),
    Kind.Q5_K: Format(5, 32, 8, 63, False),
    Kind.Q4_K: Format(4, 32, 8, 63, False),
    Kind.Q3_K: Format(3, 16, 16, 31, True),
    Kind.Q5_1: Format(5, 32, 1, 1, False),
    Kind.Q4_1: Format(4, 32, 1, 1, False),
}


@dataclass(frozen=True, slots=True, eq=False)
class SuperTensor:
    """A weight `[out, in]` in one of `FORMATS`.

    - `codes`: int8 `[out, in]`, centred codes from the format's `low` to its `high`;
    - `d`, `dmin`: float32 `[out, blocks]`, each value exact in FP16; `dmin` is None if the format is `signed`;
    - `scales`, `minima`: int16 `[out, groups]`, the integers `s` and `m`; `minima` is None if the format is `signed`.

    Raises `SchemeError` if a shape, the presence of `dmin` and `minima`, or a code does not match the format.
    """

    kind: GGMLQuantizationType
    codes: Codes
    d: Floats
    scales: Int16s
    dmin: Floats | None = None
    minima: Int16s | None = None

    def __post_init__(self) -> None:
        form, (rows, columns) = self.format, self.shape
        if columns % form.block:
            raise SchemeError(f"rows of {columns} weights do not divide into blocks of {form.block}")
        blocks, groups = (rows, columns // form.block), (rows, columns // form.group)
        if self.d.shape != blocks or self.scales.shape != groups:
            raise SchemeError(f"{self.kind.name} needs `d` of shape {blocks} and `scales` of shape {groups}")
        if (self.dmin is None) != form.signed or (self.minima is None) != form.signed:
            raise SchemeError(f"{self.kind.name} {'has no' if form.signed else 'needs a'} minimum")
        minima_fit = self.minima is None or self.minima.shape == groups
        if not minima_fit or (self.dmin is not None and self.dmin.shape != blocks):
            raise SchemeError(
                f"{self.kind.name} needs `dmin` of shape {blocks} and `minima` of shape {groups}"
            )
        if self.codes.size and not form.low <= int(self.codes.min()) <= int(self.codes.max()) <= form.high:
            raise SchemeError(f"a code lies outside [{form.low}, {form.high}] of {self.kind.name}")

    @property
    def format(self) -> Format:
        """Return the parameters of the block type."""
        return FORMATS[self.kind]

    @property
    def shape(self) -> tuple[int, int]:
        """Return `(out, in)`."""
        rows, columns = self.codes.shape
        return rows, columns

    def group_scales(self) -> Floats:
        """Return the scale `d * s` of each group, float32 `[out, groups]`."""
        return _per_group(self.d, self.scales)

    def group_minima(self) -> Floats | None:
        """Return the value `dmin * m` to subtract in each group, float32 `[out, groups]`; None for signed formats."""
        return None if self.dmin is None or self.minima is None else _per_group(self.dmin, self.minima)

    def dequantize(self) -> Floats:
        """Return the weights, float32 `[out, in]`. Each product and difference rounds once, as in ggml's reference."""
        grouped = self.codes.reshape(len(self.codes), -1, self.format.group)
        values = grouped.astype(np.float32) * self.group_scales()[..., None]
        minima = self.group_minima()
        if minima is not None:
            values -= minima[..., None]
        return values.reshape(self.shape)

    def rows(self, start: int, stop: int) -> SuperTensor:
        """Return rows `start` (included) to `stop` (excluded) as a new tensor."""
        return self.take(np.arange(start, min(stop, len(self.codes))))

    def take(self, rows: NDArray[np.int64]) -> SuperTensor:
        """Return the rows with these indices, in this order, as a new tensor."""
        return SuperTensor(
            self.kind,
            self.codes[rows],
            self.d[rows],
            self.scales[rows],
            None if self.dmin is None else self.dmin[rows],
            None if self.minima is None else self.minima[rows],
        )


#: Any weight that a GGUF file can hold.
Storable: TypeAlias = Weight | SuperTensor


def encode(weight: SuperTensor) -> Bytes:
    """Return the bytes of a GGUF tensor, uint8 `[out, blocks * bytes per block]`."""
    form, rows = weight.format, len(weight.codes)
    codes = (weight.codes.astype(np.int16) - form.low).astype(np.uint8).reshape(rows, -1, form.block)
    scales = weight.scales.reshape(rows, -1, form.groups)
    d = _fp16_bytes(weight.d)
    if weight.kind == Kind.Q6_K:
        parts = [*_six_bits(codes), scales.astype(np.int8).view(np.uint8), d]
    elif weight.kind == Kind.Q3_K:
        parts = [*_three_bits(codes), _pack_signed_scales(scales), d]
    else:
        assert weight.dmin is not None
        assert weight.minima is not None
        if form.groups == 1:
            parts = [d, _fp16_bytes(-weight.dmin), *_plain_bits(codes, form.bits)]
        else:
            minima = weight.minima.reshape(rows, -1, form.groups)
            parts = [d, _fp16_bytes(weight.dmin), _pack_scales(scales, minima), *_nibbles(codes, form.bits)]
    return np.concatenate(parts, axis=2).reshape(rows, -1)


def _per_group(numbers: Floats, multiples: Int16s) -> Floats:
    """Multiply each block's FP16 value by the integers of the block's groups: float32 `[out, groups]`."""
    grouped = multiples.reshape(*numbers.shape, -1).astype(np.float32)
    return np.asarray(numbers[..., None] * grouped).reshape(multiples.shape)


def _fp16_bytes(values: Floats) -> Bytes:
    """Return each value as two FP16 bytes, uint8 `[..., 2]`."""
    return values.astype(np.float16)[..., None].view(np.uint8)


def _pack_strided(codes: Bytes, width: int, fields: int) -> Bytes:
    """Pack codes of `8 / fields` bits each: every run of `width * fields` codes becomes `width` bytes.

    Byte i of a run holds codes i, i + width, i + 2 * width, ..., the first in the lowest bits.
    """
    parts = codes.reshape(*codes.shape[:2], -1, fields, width)
    shifts = np.arange(fields, dtype=np.uint8)[:, None] * np.uint8(8 // fields)
    packed: Bytes = np.bitwise_or.reduce(parts << shifts, axis=3)
    return packed.reshape(*codes.shape[:2], -1)


def _six_bits(codes: Bytes) -> list[Bytes]:
    """Split 6-bit codes: low nibbles (64 bytes per 128 codes), then the upper 2 bits (32 bytes per 128 codes)."""
    return [_pack_strided(codes & LOW, 64, 2), _pack_strided(codes >> np.uint8(4), 32, 4)]


def _three_bits(codes: Bytes) -> list[Bytes]:
    """Split 3-bit codes: bit 2 (32 bytes per 256 codes), then the low 2 bits (32 bytes per 128 codes)."""
    return [_pack_strided(codes >> np.uint8(2), 32, 8), _pack_strided(codes & np.uint8(3), 32, 4)]


def _nibbles(codes: Bytes, bits: int) -> list[Bytes]:
    """Split codes of a K-quant: bit 4 if `bits` is 5 (32 bytes per 256 codes), then nibbles (32 bytes per 64 codes)."""
    low = _pack_strided(codes & LOW, 32, 2)
    return [low] if bits == 4 else [_pack_strided(codes >> np.uint8(4), 32, 8), low]


def _plain_bits(codes: Bytes, bits: int) -> list[Bytes]:
    """Split codes of Q4_1 or Q5_1: bit 4 if `bits` is 5 (4 bytes, in code order), then nibbles (16 bytes)."""
    low = _pack_strided(codes & LOW, 16, 2)
    return [low] if bits == 4 else [np.packbits(codes >> np.uint8(4), axis=2, bitorder="little"), low]


def _pack_scales(scales: Int16s, minima: Int16s) -> Bytes:
    """Pack the eight 6-bit pairs `s[i]`, `m[i]` of a Q4_K or Q5_K block into 12 bytes.

    For i in 0..3::

        byte i        bits 0-5: s[i]                      bits 6-7: upper 2 bits of s[i + 4]
        byte 4 + i    bits 0-5: m[i]                      bits 6-7: upper 2 bits of m[i + 4]
        byte 8 + i    bits 0-3: low nibble of s[i + 4]    bits 4-7: low nibble of m[i + 4]
    """
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    low, high = slice(0, 4), slice(4, 8)
    return np.concatenate(
        [
            s[..., low] | (s[..., high] >> 4 << 6),
            m[..., low] | (m[..., high] >> 4 << 6),
            (s[..., high] & 15) | (m[..., high] << 4),
        ],
        axis=2,
    )


def _pack_signed_scales(scales: Int16s) -> Bytes:
    """Pack the sixteen 6-bit values `s + 32` of a Q3_K block into 12 bytes.

    Byte i (i < 8) holds the low nibbles of values i and i + 8. Byte 8 + i (i < 4) holds the upper 2 bits of values i,
    i + 4, i + 8 and i + 12. The first of these values is in the lowest bits.
    """
    s = (scales + 32).astype(np.uint8)
    return np.concatenate([_pack_strided(s & LOW, 8, 2), _pack_strided(s >> np.uint8(4), 4, 4)], axis=2)
