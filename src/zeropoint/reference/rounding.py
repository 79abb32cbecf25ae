"""From float weights to codes: ranges, scales, zero points and rounding, `q = round(w / scale) + zero_point`.

Shapes: a weight is `[out, in]`; ranges, scales and zero points have the shape `Scheme.scale_shape` (`[1, 1]`,
`[out, 1]` or `[out, groups]`; the last group of a row may be shorter). Rounding is half to even (IEEE 754's default,
`np.rint`), as in compressed-tensors. Every range is widened to include 0, so 0 is represented exactly and padding adds
no error.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.dtypes import BY_FORMAT
from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.values.arrays import Codes, Floats
from zeropoint.values.qtensor import QuantizedTensor, expand_groups
from zeropoint.values.scheme import MAX_MULTIPLE, Scheme

STORAGE: dict[str, Any] = {
    **{format: dtype.numpy() for format, dtype in BY_FORMAT.items()},
    "nested": BY_FORMAT[
        "bf16"
    ].numpy(),  # base and multiple together have 8 significant bits, so bfloat16 is exact
}

#: The smallest scale of each type. bf16 and fp32 are limited to normal numbers, because kernels may flush denormals to
#: zero. fp16 may be denormal: widened to fp32, it is a normal number.
SMALLEST_SCALE: dict[str, float] = {"bf16": 2.0**-126, "fp16": 2.0**-24, "fp32": 2.0**-126}

#: The scale of a group of zeros. Any value would do; 1 is exact in every type.
EMPTY_SCALE = 1.0

#: Number of weights processed at once, so that they and their temporaries stay in a core's cache.
PIECE = 1 << 16

#: The smallest base of two-level scales, so that all of its multiples are normal numbers.
NESTED_FLOOR = 2.0**-120


def pieces(weight: NDArray[Any]) -> Iterator[slice]:
    """Yield slices of consecutive rows of a matrix, each with at most about `PIECE` values."""
    step = max(1, PIECE // max(1, weight.shape[1]))
    for start in range(0, len(weight), step):
        yield slice(start, start + step)


def check_finite(weight: NDArray[Any], name: str) -> None:
    """Raise `CheckpointError` with the weight's `name` and the first position if a value is NaN or infinite."""
    if np.isfinite(weight.min(initial=0)) and np.isfinite(weight.max(initial=0)):
        return  # min and max are NaN if any value is NaN
    bad = ~np.isfinite(weight)
    if bad.any():
        place = tuple(int(i) for i in np.argwhere(bad)[0])
        raise CheckpointError(
            f"{name} holds {int(bad.sum())} NaN or infinite values (the first at {place}): "
            "the checkpoint is damaged; download or export it again"
        )


def grouped(values: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """Reshape `[out, in]` to `[rows, groups, group_size]` by the scheme's granularity; pad short groups with 0."""
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
    """Return the smallest and largest value of each group, widened to include 0; float32 of `scale_shape` each."""
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
    """Round scales to the nearest values that `dtype` (bf16, fp16, fp32, nested) represents; return them as float32.

    Signs are kept. With `up`, the magnitude is rounded up. 0 becomes `EMPTY_SCALE`; smaller magnitudes than
    `SMALLEST_SCALE` are raised to it. Raises `SchemeError` if a scale overflows the type (fp16 ends at 65504).

    `nested` (two-level scales): the scales of a row (last axis) become an integer from 1 to `multiples` times
    `nested_base` of the row. `name` is the weight's name in errors.
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
    """Return the base `[..., 1]` of each row's two-level scales `[..., groups]`, float64.

    The base is the smallest number whose multiple `multiples` reaches the row's largest scale, with few enough
    significant bits that base times multiple is exact in bfloat16: 4 bits for 15 multiples, 5 bits for 7. Two-level
    scales with an integer second level, so that 4-bit codes widen exactly to int8, come from QServe (arXiv:2405.04532).
    """
    digits = 1 << (8 - multiples.bit_length())
    most = np.abs(np.asarray(scale, dtype=np.float64)).max(axis=-1, keepdims=True)
    mantissa, exponent = np.frexp(np.maximum(most / multiples, NESTED_FLOOR))
    base: NDArray[np.float64] = np.ldexp(np.ceil(mantissa * digits) / digits, exponent)
    return np.where(most == 0, EMPTY_SCALE, base)


def _round_nested(scale: NDArray[np.float64], multiples: int, *, up: bool) -> Floats:
    """Round scales `[..., groups]` to integer multiples of their row's base."""
    base = nested_base(scale, multiples)
    steps = np.abs(scale) / base
    multiple = np.clip(np.ceil(steps) if up else np.rint(steps), 1, multiples)
    return np.copysign(multiple * base, scale).astype(np.float32)


def affine_parameters(
    low: NDArray[Any], high: NDArray[Any], scheme: Scheme, *, name: str = "the tensor"
) -> tuple[Floats, Codes | None]:
    """Return the scale and zero point (None if symmetric) that cover `[low, high]`, a range that includes 0.

    Symmetric: `scale = max(-low, high) / qmax`, rounded to nearest, or up where that would cut off more than scale / 2.
    Asymmetric: `scale = (high - low) / (qmax - qmin)`, rounded up to the scale's type, and
    `zero_point = round(qmin - low / scale)` (Jacob et al. 2018, arXiv:1712.05877). No value of the range is then off by
    more than scale / 2. Raises `SchemeError` if a scale overflows its type; `name` is the weight's name in the message.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    if scheme.symmetric:
        largest = np.maximum(-low, high)
        rounded = partial(
            round_scale, largest / scheme.qmax, scheme.scale_dtype, multiples=scheme.max_multiple, name=name
        )
        coarse = scheme.scale_dtype == "nested"  # rounding to nearest could cut off a third of a range
        scale = rounded(up=coarse)
        # Subnormal fp16 scales are so coarse that the nearest one may cut off more than half a step.
        cut_off = largest > (scheme.qmax + 0.5) * scale.astype(np.float64)
        return np.where(cut_off, rounded(up=True), scale) if cut_off.any() else scale, None
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
    """Quantize a float weight `[out, in]`: `clamp(round(w / scale) + zero_point, qmin, qmax)`, half to even.

    `scale` (float32, already rounded by `round_scale`) and `zero_point` (int8, None if symmetric) have the shape
    `scheme.scale_shape`. Raises `CheckpointError` on NaN or inf, `SchemeError` if the weight is not 2-D.
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
    """Return the codes as float32 `[rows, in]`."""
    columns = weight.shape[1]
    codes: Floats = weight / expand_groups(scale, scheme, columns)
    np.rint(codes, out=codes)
    if zero_point is not None:
        codes += expand_groups(zero_point, scheme, columns)
    return np.clip(codes, scheme.qmin, scheme.qmax, out=codes)


def quantize_min_max(weight: NDArray[Any], scheme: Scheme, *, name: str = "the tensor") -> QuantizedTensor:
    """Quantize a float weight `[out, in]` to nearest on the full range of each group (min-max), without a search.

    No error exceeds scale / 2. Raises `CheckpointError` on NaN or inf, `SchemeError` if a scale overflows its type.
    """
    weight = np.asarray(weight, dtype=np.float32)
    check_finite(weight, name)
    low, high = group_range(weight, scheme)
    scale, zero_point = affine_parameters(low, high, scheme, name=name)
    return quantize(weight, scheme, scale=scale, zero_point=zero_point, name=name)
