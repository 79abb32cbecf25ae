"""From floats to codes: ranges, scales, zero points, rounding. The meaning of `q = round(w / scale) + zero_point`.

Shapes: a weight is `[out, in]`; ranges, scales and zero points have `Scheme.scale_shape` of it
(`[1, 1]`, `[out, 1]` or `[out, groups]`, the last group of a row possibly short). Rounding is half to
even (IEEE 754's default, `np.rint`), as in compressed-tensors. Zero is always exactly representable, so
ranges are widened to hold it and padding costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.values.qtensor import Codes, Floats, QuantizedTensor, expand_groups
from zeropoint.values.scheme import MAX_MULTIPLE, Scheme

STORAGE: dict[str, Any] = {
    "bf16": ml_dtypes.bfloat16,
    "fp16": np.float16,
    "fp32": np.float32,
    "nested": ml_dtypes.bfloat16,  # the significant bits of base and multiple are 8 together: exact
}

#: The smallest scale a type stores. Normal numbers for bf16 and fp32, because kernels may flush
#: denormals to zero; fp16's denormals become normal when widened to fp32, so they are fine.
SMALLEST_SCALE: dict[str, float] = {"bf16": 2.0**-126, "fp16": 2.0**-24, "fp32": 2.0**-126}

#: The scale of a group that holds nothing but zeros: any value will do, this one is exact everywhere.
EMPTY_SCALE = 1.0

#: Weights worked on at once: small enough that they and their temporaries stay in a core's cache.
PIECE = 1 << 16

#: Keeps the multiples of a nested scale's base normal numbers.
NESTED_FLOOR = 2.0**-120


def pieces(weight: NDArray[Any]) -> Iterator[slice]:
    """The rows of a matrix, as many at a time as make a `PIECE`."""
    step = max(1, PIECE // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def check_finite(weight: NDArray[Any], name: str) -> None:
    """Raise `CheckpointError` naming the layer and the place when a weight is NaN or infinite."""
    if np.isfinite(weight.min(initial=0)) and np.isfinite(weight.max(initial=0)):
        return  # NaN is the smallest and the largest of all
    bad = ~np.isfinite(weight)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise CheckpointError(
            f"{name} holds {int(bad.sum())} NaN or infinite values (the first at {place}): "
            "the checkpoint is damaged; download or export it again"
        )


def grouped(values: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """`[out, in]` as `[rows, groups, group]` in the scheme's granularity, a short last group padded with zeros."""
    rows, columns = values.shape
    if scheme.granularity == "tensor":
        return values.reshape(1, 1, rows * columns)
    if scheme.granularity == "channel":
        return values.reshape(rows, 1, columns)
    padding = -columns % scheme.group_size
    if padding:
        values = np.pad(values, ((0, 0), (0, padding)))
    return values.reshape(rows, -1, scheme.group_size)


def group_range(weight: NDArray[Any], scheme: Scheme) -> tuple[Floats, Floats]:
    """Smallest and largest value of each group, widened to hold zero; float32, `scale_shape` each."""
    groups = grouped(np.asarray(weight, dtype=np.float32), scheme)
    low = np.minimum(groups.min(axis=2, initial=0.0), 0.0)
    high = np.maximum(groups.max(axis=2, initial=0.0), 0.0)
    return low.astype(np.float32), high.astype(np.float32)


def round_scale(
    scale: NDArray[Any],
    dtype: str,
    *,
    up: bool = False,
    multiples: int = MAX_MULTIPLE,
    name: str = "the tensor",
) -> Floats:
    """The nearest values that `dtype` (bf16, fp16, fp32) represents exactly, as float32; signs are kept.

    With `up`, the nearest not smaller in magnitude. Zero becomes `EMPTY_SCALE`, and a magnitude below
    `SMALLEST_SCALE` is raised to it. Raises `SchemeError` when a scale overflows the type (fp16 ends at 65504).

    The scales of one row, the last axis, become `nested` together: 1 to `multiples` times `nested_base`.
    """
    scale = np.asarray(scale, dtype=np.float64)
    if dtype == "nested":
        return _round_nested(scale, multiples, up=up)
    storage = STORAGE[dtype]
    with np.errstate(over="ignore"):
        rounded = scale.astype(np.float32).astype(storage)
        if up:
            short = np.abs(rounded.astype(np.float64)) < np.abs(scale)
            rounded = np.where(
                short, np.nextafter(rounded, np.copysign(np.inf, scale).astype(storage)), rounded
            )
    result = rounded.astype(np.float32)
    if not np.isfinite(result).all():
        raise SchemeError(
            f"{name}: a scale of {float(np.abs(scale).max()):.4g} does not fit {dtype}; use bf16 or fp32 scales"
        )
    smallest = np.float32(SMALLEST_SCALE[dtype])
    result = np.where(np.abs(result) < smallest, np.copysign(smallest, result), result)
    return np.where(scale == 0, np.float32(EMPTY_SCALE), result).astype(np.float32)


def nested_base(scale: NDArray[Any], multiples: int) -> NDArray[np.float64]:
    """The number per row, `[..., 1]`, whose multiples stand for the row's scales `[..., groups]`.

    The smallest that reaches the row's largest scale in so many steps and has the significant bits that a bfloat16's
    8 leave it beside a multiple's: 4 of 15 multiples, 5 of 7. Two-level scales with an integer second level, so that
    4-bit codes widen exactly to int8, are QServe's (arXiv:2405.04532).
    """
    digits = 1 << (8 - multiples.bit_length())
    most = np.abs(np.asarray(scale, dtype=np.float64)).max(axis=-1, keepdims=True)
    mantissa, exponent = np.frexp(np.maximum(most / multiples, NESTED_FLOOR))
    base: NDArray[np.float64] = np.ldexp(np.ceil(mantissa * digits) / digits, exponent)
    return np.where(most == 0, EMPTY_SCALE, base)


def _round_nested(scale: NDArray[np.float64], multiples: int, *, up: bool) -> Floats:
    base = nested_base(scale, multiples)
    steps = np.abs(scale) / base
    multiple = np.clip(np.ceil(steps) if up else np.rint(steps), 1, multiples)
    return np.copysign(multiple * base, scale).astype(np.float32)


def affine_parameters(
    low: NDArray[Any], high: NDArray[Any], scheme: Scheme, *, name: str = "the tensor"
) -> tuple[Floats, Codes | None]:
    """Scale and zero point that cover `[low, high]` (which holds zero), so that no error exceeds scale / 2.

    Symmetric: `scale = max(-low, high) / qmax`. Asymmetric: `scale = (high - low) / (qmax - qmin)`, rounded
    up to the scale's type, and `zero_point = round(qmin - low / scale)` (Jacob et al. 2018, arXiv:1712.05877).
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if scheme.symmetric:
        coarse = scheme.scale_dtype == "nested"  # to the nearest, a range could lose a third
        scale = np.maximum(-low, high) / scheme.qmax
        return round_scale(
            scale, scheme.scale_dtype, up=coarse, multiples=scheme.max_multiple, name=name
        ), None
    scale = round_scale((high - low) / (scheme.qmax - scheme.qmin), scheme.scale_dtype, up=True, name=name)
    zero_point = np.clip(np.rint(scheme.qmin - low / scale), scheme.qmin, scheme.qmax)
    return scale, zero_point.astype(np.int8)


def quantize(
    weight: NDArray[Any],
    scheme: Scheme,
    *,
    scale: Floats,
    zero_point: Codes | None = None,
    name: str = "the tensor",
) -> QuantizedTensor:
    """`clamp(round(w / scale) + zero_point, qmin, qmax)` with half-to-even rounding.

    `weight` is a float `[out, in]`; scale and zero point have `scheme.scale_shape`, the scale already
    rounded (`round_scale`). Raises `CheckpointError` on NaN or inf, `SchemeError` on a bad shape.
    """
    weight = np.asarray(weight, dtype=np.float32)
    if weight.ndim != 2:
        raise SchemeError(f"{name} has {weight.ndim} dimensions; only 2-D [out, in] weights are quantized")
    check_finite(weight, name)
    codes = np.empty(weight.shape, np.int8)
    for rows in pieces(weight):
        part = slice(None) if scheme.granularity == "tensor" else rows
        zero = None if zero_point is None else zero_point[part]
        codes[rows] = _round(weight[rows], scheme, scale[part], zero)
    return QuantizedTensor(scheme, codes, scale, zero_point)


def _round(weight: Floats, scheme: Scheme, scale: Floats, zero_point: Codes | None) -> Floats:
    """Codes as float32."""
    columns = weight.shape[1]
    codes: Floats = weight / expand_groups(scale, scheme, columns)
    np.rint(codes, out=codes)
    if zero_point is not None:
        codes += expand_groups(zero_point, scheme, columns)
    return np.clip(codes, scheme.qmin, scheme.qmax, out=codes)


def quantize_min_max(weight: NDArray[Any], scheme: Scheme, *, name: str = "the tensor") -> QuantizedTensor:
    """Plain round-to-nearest: the full range of each group is covered, every error is at most scale / 2."""
    weight = np.asarray(weight, dtype=np.float32)
    check_finite(weight, name)
    low, high = group_range(weight, scheme)
    scale, zero_point = affine_parameters(low, high, scheme, name=name)
    return quantize(weight, scheme, scale=scale, zero_point=zero_point, name=name)
