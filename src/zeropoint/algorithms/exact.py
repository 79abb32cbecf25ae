"""Exact: recover codes and scales of a weight that was trained on a grid, or refuse.

Models that were trained for a quantized format are often published as bfloat16 numbers: each group of weights is a
scale times whole numbers, rounded to bfloat16. Quantizing such a weight again, on other scales, adds a second error.
This algorithm finds the scale and the codes themselves: for every group, a scale of the scheme's type for which
`(code - zero_point) * scale`, rounded to the type that holds the weight, equals each weight. That is checked for each
weight, so a result is a proof; a group without such a scale is refused.

The type that holds the weight is the first of bfloat16, float16 and float32 that represents all of its values. The
largest weight of a group is m scales, with m unknown and small: for each m, every weight gives an interval of scales
that round to it, and the intervals' intersection has the scale, if there is one.

Codes of 8 bits are recovered if the weights were not rounded: bfloat16 has 8 significant bits, too few to tell which
of 255 codes a rounded weight was. Such weights are refused.

Cost: one pass over the weight for each m up to 2^bits, over the groups that are left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.reference.rounding import EMPTY_SCALE, check_finite, grouped, round_scale
from zeropoint.values.arrays import Codes, Doubles, Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

NEEDS: frozenset[str] = frozenset()

#: Types that may hold a weight, with the bits of their significands.
_HOLDERS: tuple[tuple[Any, int], ...] = ((ml_dtypes.bfloat16, 8), (np.float16, 11), (np.float32, 24))

#: Groups that are searched at once, so that their temporaries stay small.
_GROUPS_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Options:
    """There is nothing to choose: a grid fits or does not."""


def needs(scheme: Scheme, options: Options) -> frozenset[str]:
    """Return the statistics that `quantize` uses: none."""
    return NEEDS


def quantize(weight: Floats, stats: LayerStats | None, scheme: Scheme, options: Options) -> QuantizedTensor:
    """Return the codes, scales and zero points from which a weight `[out, in]` was made.

    Raises `SchemeError` with the first group that lies on no grid of the scheme.
    """
    check_finite(weight, "the weight")
    weight = np.asarray(weight, np.float32)
    holder, bits = next(pair for pair in _HOLDERS if np.array_equal(_held(weight, pair[0]), weight))
    groups = grouped(weight, scheme)
    shape = groups.shape[:2]
    values = groups.reshape(shape[0] * shape[1], -1)
    scale, zero = np.empty(len(values), np.float32), np.zeros(len(values), np.int8)
    for start in range(0, len(values), _GROUPS_AT_ONCE):
        part = slice(start, start + _GROUPS_AT_ONCE)
        # First without rounding: a small m may fit as rounded numbers where a larger one fits exactly.
        scale[part], zero[part], found = _search(values[part], scheme, np.float32, 24)
        left = start + np.flatnonzero(~found)
        scale[left], zero[left], found[~found] = _search(values[left], scheme, holder, bits)
        if not found.all():
            row, group = divmod(start + int(np.argmin(found)), shape[1])
            where = f"row {row}" if shape[1] == 1 else f"group {group} of row {row}"
            raise SchemeError(
                f"{where} lies on no grid of {scheme.bits}-bit codes: give the format that the weight was trained for, "
                "or keep the weight (--keep; --embedding keep)"
            )
    if scheme.scale_dtype == "nested" and not _has_bases(scale.reshape(shape), scheme.max_multiple):
        raise SchemeError(
            "the scales of a row are not multiples of one number: give bf16, fp16 or fp32 scales"
        )
    levels = np.rint(values / scale[:, None]) + zero[:, None]
    codes = np.ascontiguousarray(_ungrouped(levels.reshape(groups.shape), weight.shape), np.int8)
    zero_point = None if scheme.symmetric else zero.reshape(shape)
    return QuantizedTensor(scheme, codes, scale.reshape(shape), zero_point)


def _search(
    values: Floats, scheme: Scheme, holder: Any, bits: int
) -> tuple[Floats, Codes, NDArray[np.bool_]]:
    """Return the scale and zero point of each group `[groups, size]`, and whether the group has one."""
    scale, zero = np.full(len(values), EMPTY_SCALE, np.float32), np.zeros(len(values), np.int8)
    most = np.abs(values).max(axis=1, initial=0.0).astype(np.float64)
    found = most == 0
    steps = -scheme.qmin if scheme.symmetric else scheme.qmax - scheme.qmin
    for m in range(1, steps + 1):
        # The scale nearest to the interval's middle is inside; but at an end, only rounding tells which end is.
        for place in (0.5, 0.0, 1.0):
            left = np.flatnonzero(~found)
            if not left.size:
                return scale, zero, found
            group = values[left]
            levels = np.rint(group / (most[left, None] / m))
            candidate = _candidate(group, levels, scheme, bits, place)
            if scheme.symmetric:  # codes reach further down than up: a negative scale turns them around
                turn = np.where(levels.max(axis=1) > scheme.qmax, np.float32(-1), np.float32(1))
                candidate, levels = candidate * turn, levels * turn[:, None]
            low, high = levels.min(axis=1), levels.max(axis=1)
            zeros = np.zeros(len(left))
            if not scheme.symmetric:
                zeros = np.clip(scheme.qmin - low, scheme.qmin, scheme.qmax)
            fits = (low + zeros >= scheme.qmin) & (high + zeros <= scheme.qmax)
            product = levels.astype(np.float32) * candidate[:, None]
            fits &= (_held(product, holder) == group).all(axis=1)
            # The quotient must give the codes again: `quantize` computes them from the scale.
            fits &= (np.rint(group / candidate[:, None]) == levels).all(axis=1)
            chosen = left[fits]
            scale[chosen], zero[chosen], found[chosen] = candidate[fits], zeros[fits].astype(np.int8), True
    return scale, zero, found


def _candidate(values: Floats, levels: Doubles, scheme: Scheme, bits: int, place: float) -> Floats:
    """Return for each group a scale from the interval for which all levels times the scale round to the values.

    `place` is where in the interval, from 0 to 1; the result is the nearest number of the scheme's scale type.
    """
    sizes, counts = np.abs(values).astype(np.float64), np.abs(levels)
    with np.errstate(divide="ignore", invalid="ignore"):
        mantissa, exponent = np.frexp(sizes)
        reach = np.ldexp(
            0.5, exponent - bits
        )  # half a unit in the last place of the type that holds the values
        below = np.where(mantissa == 0.5, reach / 2, reach)  # numbers lie twice as close below a power of two
        low = np.where(counts > 0, (sizes - below) / counts, -np.inf).max(axis=1)
        high = np.where(counts > 0, (sizes + reach) / counts, np.inf).min(axis=1)
    dtype = "bf16" if scheme.scale_dtype == "nested" else scheme.scale_dtype
    return round_scale(np.clip(low + place * (high - low), 0, 6e4 if dtype == "fp16" else 3e38), dtype)


def _has_bases(scale: Floats, multiples: int) -> bool:
    """Return whether the scales of each row are integers, up to `multiples`, times one number, as kernels need them."""
    most = np.abs(scale).max(axis=1, keepdims=True)
    has_base = np.zeros(len(scale), bool)
    for divisor in range(1, multiples + 1):
        base = most / np.float32(divisor)
        has_base |= (np.rint(scale / base) * base == scale).all(axis=1)
    return bool(has_base.all())


def _held(values: Floats, holder: Any) -> Floats:
    """Return values rounded to a type, as float32."""
    with np.errstate(over="ignore"):
        held: Floats = values.astype(holder).astype(np.float32)
    return held


def _ungrouped(groups: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """Return `[rows, groups, group_size]` as `[out, in]`: the inverse of `zeropoint.reference.rounding.grouped`."""
    return (
        groups.reshape(shape) if groups.shape[0] != shape[0] else groups.reshape(shape[0], -1)[:, : shape[1]]
    )
