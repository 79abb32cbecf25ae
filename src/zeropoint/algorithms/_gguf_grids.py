"""Grid search for ggml's block formats: scales and minima of K-quants, Q4_1 and Q5_1, fitted to a float weight.

In a K-quant, a group's scale and minimum are small integer multiples of two FP16 numbers, `d` and `dmin`, which the 256
weights of a GGUF block share. The search has two steps:

1. Each group gets a float scale and minimum. The search of `rtn` gives a scale and a zero point (errors are weighted by
   the layer's inputs if those are known). Least squares over `rtn`'s codes refines both. Grids that start at the
   group's smallest weight are tried too.
2. `d` and `dmin` are set so that the block's largest scale and minimum are representable. Each group then tries the
   multiples next to its float scale and minimum, with all of its codes chosen again, and takes the pair with the lowest
   error.

llama.cpp (`make_qkx3_quants`) also searches each group, but then rounds scale and minimum to the nearest multiples.

`as_grid` and `with_codes` let other algorithms (GPTQ) choose the codes on such a grid.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gguf import GGMLQuantizationType

from zeropoint.algorithms import rtn
from zeropoint.errors import SchemeError
from zeropoint.gguf.types.superblocks import FORMATS, Format, SuperTensor
from zeropoint.machine.cores import usable_cores
from zeropoint.reference import rounding
from zeropoint.values.arrays import Codes, Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: The smallest `d` and `dmin`: FP16's smallest positive number, so that no step is zero.
TINY = np.float32(2.0**-24)

#: For grids that start at a group's smallest weight: added to the number of steps that span the group's range.
STRETCHES = (-0.8, -0.4, 0.0, 0.4, 0.8)

#: Multiples tried for each group's scale, relative to the nearest one.
NEIGHBOURS = (0, -1, 1)


def fit(weight: Floats, stats: LayerStats | None, kind: GGMLQuantizationType) -> SuperTensor:
    """Find a grid for a finite float32 weight `[out, in]` and round the weight to nearest, errors weighted by `stats`.

    Raises `SchemeError` if rows do not divide into the format's blocks, or a scale overflows FP16.
    """
    form, (_, columns) = FORMATS[kind], weight.shape
    if columns % form.block:
        raise SchemeError(f"rows of {columns} weights do not divide into blocks of {form.block}")
    start = rtn.quantize(weight, stats, form.scheme, rtn.Options())
    importance = np.ones(columns, np.float32) if stats is None else rtn.importance_of(stats)
    with ThreadPoolExecutor(min(4, usable_cores())) as pool:  # numpy releases the GIL
        pieces = pool.map(
            lambda part: _fit(weight[part], start.rows(part.start, part.stop), importance, kind),
            rounding.pieces(weight),
        )
        return stacked(list(pieces))


def stacked(parts: list[SuperTensor]) -> SuperTensor:
    """Concatenate tensors that hold consecutive rows of one weight."""
    if len(parts) == 1:
        return parts[0]
    dmin = [part.dmin for part in parts if part.dmin is not None]
    minima = [part.minima for part in parts if part.minima is not None]
    return SuperTensor(
        parts[0].kind,
        np.concatenate([part.codes for part in parts]),
        np.concatenate([part.d for part in parts]),
        np.concatenate([part.scales for part in parts]),
        np.concatenate(dmin) if dmin else None,
        np.concatenate(minima) if minima else None,
    )


def as_grid(weight: SuperTensor) -> tuple[QuantizedTensor, Floats | None]:
    """Return the weight as codes centred on 0 with one scale per group, and an offset float32 `[out, in]` or None.

    The offset is added to the dequantized codes; it is None for formats without a minimum.
    """
    form = weight.format
    scheme = Scheme(form.bits, "group", form.group, True, "fp32")
    step, minimum = weight.step(), weight.minimum()
    centred = QuantizedTensor(scheme, weight.codes - _middle(form), step)
    if minimum is None:
        return centred, None
    return centred, np.repeat(step * np.float32(_middle(form)) - minimum, form.group, axis=1)


def with_codes(weight: SuperTensor, codes: Codes) -> SuperTensor:
    """Return the weight with other codes on the same grid; `codes` int8 `[out, in]` are centred on 0 (`as_grid`)."""
    codes = codes + _middle(weight.format)
    return SuperTensor(weight.kind, codes, weight.d, weight.scales, weight.dmin, weight.minima)


def _middle(form: Format) -> np.int8:
    """Return the stored code that `as_grid` maps to 0."""
    return np.int8(0 if form.signed else 1 << (form.bits - 1))


def _fit(
    weight: Floats, start: QuantizedTensor, importance: Floats, kind: GGMLQuantizationType
) -> SuperTensor:
    """Fit a few rows, starting from the grid of `rtn` with float scales (`start`).

    Arrays inside have the shape `[rows, blocks, groups]` or `[rows, blocks, groups, weights]`.
    """
    form, rows = FORMATS[kind], len(weight)
    shape = (rows, -1, form.groups)
    groups = weight.reshape(*shape, form.group)
    counts = importance.reshape(1, -1, form.groups, form.group)
    scale, minimum = start.scale.reshape(shape), None
    if start.zero_point is not None:
        levels = (start.codes.astype(np.float32) - start.scheme.qmin).reshape(groups.shape)
        plain = (start.zero_point.astype(np.float32) - start.scheme.qmin).reshape(shape) * scale
        scale, minimum = _line(groups, counts, levels, scale, plain, bounded=form.groups > 1)
        scale, minimum = _anchored(groups, counts, form, scale, minimum)
    d = _shared(np.abs(scale).max(axis=2), form.most)
    dmin = None if minimum is None else _shared(minimum.max(axis=2), form.most)
    nearest = np.rint(np.abs(scale) / d[..., None])
    least_error = np.full(scale.shape, np.inf, np.float32)
    scales, minima = np.ones_like(scale), np.ones_like(scale)
    for step in NEIGHBOURS if form.most > 1 else NEIGHBOURS[:1]:
        multiple = np.copysign(np.clip(nearest + step, 1, form.most), scale)
        step_size, minimum_multiple = multiple * d[..., None], minima
        if minimum is not None and dmin is not None and form.groups > 1:
            minimum_multiple = _lowest(groups, counts, step_size, minimum, dmin, form)
        minimum_value = None if dmin is None else minimum_multiple * dmin[..., None]
        error = _error(groups, counts, step_size, minimum_value, form)
        better = error < least_error
        least_error = np.where(better, error, least_error)
        scales, minima = np.where(better, multiple, scales), np.where(better, minimum_multiple, minima)
    codes = _levels(groups, scales * d[..., None], None if dmin is None else minima * dmin[..., None], form)
    return SuperTensor(
        kind,
        codes.reshape(weight.shape).astype(np.int8),
        d,
        scales.reshape(rows, -1).astype(np.int16),
        dmin,
        None if dmin is None else minima.reshape(rows, -1).astype(np.int16),
    )


def _line(
    groups: Floats, counts: Floats, levels: Floats, scale: Floats, minimum: Floats, *, bounded: bool
) -> tuple[Floats, Floats]:
    """Return the scale and minimum of least weighted squared error for fixed codes `levels`.

    The fit is the line `w = scale * level - minimum`; `bounded` requires `minimum >= 0`. Groups without a usable fit
    (scale not positive or not finite) keep `scale` and `minimum`.
    """
    total = counts.sum(axis=3)
    weighted = levels * counts
    mean_level, mean = weighted.sum(axis=3) / total, (groups * counts).sum(axis=3) / total
    centred = levels - mean_level[..., None]
    centred *= counts
    spread = np.einsum("rbgw,rbgw->rbg", centred, levels)
    with np.errstate(all="ignore"):
        slope = np.einsum("rbgw,rbgw->rbg", centred, groups) / spread
        fitted_minimum = slope * mean_level - mean
        if bounded:
            through_zero = np.einsum("rbgw,rbgw->rbg", weighted, groups) / np.einsum(
                "rbgw,rbgw->rbg", weighted, levels
            )
            slope = np.where(fitted_minimum < 0, through_zero, slope)
            fitted_minimum = np.maximum(fitted_minimum, 0)
        usable = np.isfinite(slope) & np.isfinite(fitted_minimum) & (slope > 0)
    return np.where(usable, slope, scale), np.where(usable, fitted_minimum, minimum)


def _anchored(
    groups: Floats, counts: Floats, form: Format, scale: Floats, minimum: Floats
) -> tuple[Floats, Floats]:
    """Return, per group, the better of `scale`, `minimum` and of grids that start at the group's smallest weight.

    `rtn`'s zero points are integers, but a minimum need not be a multiple of the scale. If the weights were on such a
    grid before (a model that was dequantized), only a grid that starts at the smallest weight finds it again.
    """
    bounded = form.groups > 1
    lowest = np.minimum(groups.min(axis=3), 0) if bounded else groups.min(axis=3)
    reach = groups.max(axis=3) - lowest
    least_error = _error(groups, counts, scale, minimum, form)
    for stretch in STRETCHES:
        size = np.where(reach > 0, reach / np.float32(form.high + stretch), scale)
        levels = _levels(groups, size, -lowest, form)
        fitted_scale, fitted_minimum = _line(groups, counts, levels, size, -lowest, bounded=bounded)
        error = _error(groups, counts, fitted_scale, fitted_minimum, form)
        better = error < least_error
        least_error = np.where(better, error, least_error)
        scale, minimum = np.where(better, fitted_scale, scale), np.where(better, fitted_minimum, minimum)
    return scale, minimum


def _error(groups: Floats, counts: Floats, size: Floats, under: Floats | None, form: Format) -> Floats:
    """Return the weighted squared error `[rows, blocks, groups]` of rounding to nearest.

    `size` is the step of each group, `under` its minimum (None: 0).
    """
    errors = _miss(groups, size, under, form)
    np.square(errors, out=errors)
    return np.asarray(np.einsum("rbgw,rbgw->rbg", errors, np.broadcast_to(counts, groups.shape)))


def _shared(largest: Floats, most: int) -> Floats:
    """Return the FP16 number whose multiple `most` is `largest`; at least `TINY`. Raises `SchemeError` on overflow."""
    with np.errstate(over="ignore"):
        number = (largest / np.float32(most)).astype(np.float16).astype(np.float32)
    if not np.isfinite(number).all():
        raise SchemeError("a scale overflows FP16")
    return np.where(number == 0, TINY, number)


def _lowest(
    groups: Floats, counts: Floats, size: Floats, minimum: Floats, dmin: Floats, form: Format
) -> Floats:
    """Return the multiple of `dmin` of least squared error for the codes that steps of `size` and `minimum` give."""
    values = _levels(groups, size, minimum, form) * size[..., None]
    target = ((values - groups) * counts).sum(axis=3) / counts.sum(axis=3)
    multiples: Floats = np.rint(target / dmin[..., None])
    return np.clip(multiples, 0, form.most, out=multiples)


def _levels(groups: Floats, size: Floats, under: Floats | None, form: Format) -> Floats:
    """Return the nearest codes as float32, for steps of `size` above `-under`."""
    levels: Floats = (groups if under is None else groups + under[..., None]) / size[..., None]
    np.rint(levels, out=levels)
    np.clip(levels, form.low, form.high, out=levels)
    return levels


def _miss(groups: Floats, size: Floats, under: Floats | None, form: Format) -> Floats:
    """Return the error of each weight after rounding to nearest: dequantized minus exact."""
    values = _levels(groups, size, under, form)
    values *= size[..., None]
    values -= groups if under is None else groups + under[..., None]
    return values
