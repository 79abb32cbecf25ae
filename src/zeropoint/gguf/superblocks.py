"""ggml's block types whose grids no scheme of ours holds: K-quants, and plain blocks with a minimum of any size.

A K-quant nests its scales: 256 weights of a row share FP16 numbers `d` (and `dmin`), and each group within them has a
small whole multiple of those. With `q` the stored code, `s` and `m` the group's multiples::

    Q6_K   w = (d * s) * (q - 32)          q in 0..63, s int8,      16 groups of 16     210 bytes
    Q5_K   w = (d * s) * q - dmin * m      q in 0..31, s, m 6 bits,  8 groups of 32     176 bytes
    Q4_K   w = (d * s) * q - dmin * m      q in 0..15, s, m 6 bits,  8 groups of 32     144 bytes
    Q3_K   w = (d * s) * (q - 4)           q in 0..7,  s in -32..31, 16 groups of 16    110 bytes
    Q5_1   w = d * q + m                   q in 0..31, m FP16,       a block of 32       24 bytes
    Q4_1   w = d * q + m                   q in 0..15, m FP16,       a block of 32       20 bytes

The last two are the same thing with one group, whose multiples are 1 and whose `dmin` is `-m`.
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
from zeropoint.values.qtensor import Codes, Floats, Weight

Bytes = NDArray[np.uint8]
Multiples = NDArray[np.int16]
Kind = GGMLQuantizationType

#: The low nibble of a byte.
LOW = np.uint8(15)


@dataclass(frozen=True, slots=True)
class Format:
    """One of the types above. `most`: the largest multiple of `d`; 1 where scales are not nested.

    `signed`: codes are centred on 0, and a scale may be negative; otherwise they begin at 0 and there is a minimum.
    """

    bits: int
    group: int
    groups: int
    most: int
    signed: bool

    @property
    def block(self) -> int:
        """Weights of a row that are stored together."""
        return self.group * self.groups

    @property
    def low(self) -> int:
        return -(1 << (self.bits - 1)) if self.signed else 0

    @property
    def high(self) -> int:
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

    - `codes`: int8 `[out, in]`, within the format's `low` and `high`;
    - `d`, `dmin`: float32 `[out, blocks]`, FP16 numbers; `dmin` is None where the format is `signed`;
    - `scales`, `minima`: int16 `[out, groups]`, the multiples of `d` and `dmin`.
    """

    kind: GGMLQuantizationType
    codes: Codes
    d: Floats
    scales: Multiples
    dmin: Floats | None = None
    minima: Multiples | None = None

    def __post_init__(self) -> None:
        form, (rows, columns) = self.format, self.shape
        if columns % form.block:
            raise SchemeError(f"rows of {columns} weights do not divide into blocks of {form.block}")
        blocks, groups = (rows, columns // form.block), (rows, columns // form.group)
        if self.d.shape != blocks or self.scales.shape != groups:
            raise SchemeError(f"{self.kind.name} has a scale {blocks} and multiples {groups} of it")
        if (self.dmin is None) != form.signed or (self.minima is None) != form.signed:
            raise SchemeError(f"{self.kind.name} {'has no' if form.signed else 'needs a'} minimum")
        if self.codes.size and not form.low <= int(self.codes.min()) <= int(self.codes.max()) <= form.high:
            raise SchemeError(f"a code lies outside [{form.low}, {form.high}] of {self.kind.name}")

    @property
    def format(self) -> Format:
        return FORMATS[self.kind]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def step(self) -> Floats:
        """What a code counts, in each group: float32 `[out, groups]`."""
        return _spread(self.d, self.scales)

    def minimum(self) -> Floats | None:
        """What is taken off, in each group: float32 `[out, groups]`; None where nothing is."""
        return None if self.dmin is None or self.minima is None else _spread(self.dmin, self.minima)

    def dequantize(self) -> Floats:
        """float32 `[out, in]`, each product and the difference rounded once, as ggml's reference does it."""
        grouped = self.codes.reshape(len(self.codes), -1, self.format.group)
        values = grouped.astype(np.float32) * self.step()[..., None]
        minimum = self.minimum()
        if minimum is not None:
            values -= minimum[..., None]
        return values.reshape(self.shape)

    def rows(self, start: int, stop: int) -> SuperTensor:
        """Rows `start` to `stop` as a tensor of their own."""
        return self.take(np.arange(start, min(stop, len(self.codes))))

    def take(self, rows: NDArray[np.int64]) -> SuperTensor:
        """The rows of these numbers, in their order."""
        return SuperTensor(
            self.kind,
            self.codes[rows],
            self.d[rows],
            self.scales[rows],
            None if self.dmin is None else self.dmin[rows],
            None if self.minima is None else self.minima[rows],
        )


#: What a GGUF file can hold.
Storable: TypeAlias = Weight | SuperTensor


def encode(weight: SuperTensor) -> Bytes:
    """Block bytes `[out, blocks * bytes of a block]`."""
    form, rows = weight.format, len(weight.codes)
    codes = (weight.codes.astype(np.int16) - form.low).astype(np.uint8).reshape(rows, -1, form.block)
    scales = weight.scales.reshape(rows, -1, form.groups)
    d = _halves(weight.d)
    if weight.kind == Kind.Q6_K:
        parts = [*_six_bits(codes), scales.astype(np.int8).view(np.uint8), d]
    elif weight.kind == Kind.Q3_K:
        parts = [*_three_bits(codes), _pack_signed_scales(scales), d]
    else:
        assert weight.dmin is not None
        assert weight.minima is not None
        if form.groups == 1:
            parts = [d, _halves(-weight.dmin), *_plain_bits(codes, form.bits)]
        else:
            minima = weight.minima.reshape(rows, -1, form.groups)
            parts = [d, _halves(weight.dmin), _pack_scales(scales, minima), *_nibbles(codes, form.bits)]
    return np.concatenate(parts, axis=2).reshape(rows, -1)


def _spread(numbers: Floats, multiples: Multiples) -> Floats:
    """Each block's number times its groups' multiples, `[out, groups]`."""
    grouped = multiples.reshape(*numbers.shape, -1).astype(np.float32)
    return np.asarray(numbers[..., None] * grouped).reshape(multiples.shape)


def _halves(values: Floats) -> Bytes:
    return values.astype(np.float16)[..., None].view(np.uint8)


def _stacked(codes: Bytes, width: int, fields: int) -> Bytes:
    """Every run of `width * fields` codes in `width` bytes: byte i holds codes i, i + width, ... from its low end."""
    parts = codes.reshape(*codes.shape[:2], -1, fields, width)
    shifts = np.arange(fields, dtype=np.uint8)[:, None] * np.uint8(8 // fields)
    packed: Bytes = np.bitwise_or.reduce(parts << shifts, axis=3)
    return packed.reshape(*codes.shape[:2], -1)


def _six_bits(codes: Bytes) -> list[Bytes]:
    """Low nibbles, a run of 128 in 64 bytes; then the upper two bits, a run of 128 in 32."""
    return [_stacked(codes & LOW, 64, 2), _stacked(codes >> np.uint8(4), 32, 4)]


def _three_bits(codes: Bytes) -> list[Bytes]:
    """The third bits, one of each 32 codes to a byte; then the lower two, a run of 128 in 32 bytes."""
    return [_stacked(codes >> np.uint8(2), 32, 8), _stacked(codes & np.uint8(3), 32, 4)]


def _nibbles(codes: Bytes, bits: int) -> list[Bytes]:
    """A run of 64 low nibbles in 32 bytes, before them the fifth bits, one of each 32 codes to a byte."""
    low = _stacked(codes & LOW, 32, 2)
    return [low] if bits == 4 else [_stacked(codes >> np.uint8(4), 32, 8), low]


def _plain_bits(codes: Bytes, bits: int) -> list[Bytes]:
    """32 low nibbles in 16 bytes, before them the fifth bits in the order of the codes."""
    low = _stacked(codes & LOW, 16, 2)
    return [low] if bits == 4 else [np.packbits(codes >> np.uint8(4), axis=2, bitorder="little"), low]


def _pack_scales(scales: Multiples, minima: Multiples) -> Bytes:
    """Eight pairs of 6 bits in 12 bytes: four whole ones, the others' low nibbles, their upper bits above the first."""
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


def _pack_signed_scales(scales: Multiples) -> Bytes:
    """Sixteen of 6 bits in 12 bytes: low nibbles of i and i + 8 together, upper pairs of i, i + 4, i + 8, i + 12."""
    s = (scales + 32).astype(np.uint8)
    return np.concatenate([_stacked(s & LOW, 8, 2), _stacked(s >> np.uint8(4), 4, 4)], axis=2)
