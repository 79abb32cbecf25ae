"""Scales and minima in ggml's nested formats, fitted to a float weight.

What a K-quant can say of a group is less than a float scale and minimum: both are small multiples of numbers that 256
weights share. So the grid is found in two steps. `rtn`'s search gives each group the scale and zero point of least
squared error, weighted by the layer's inputs where they are known, and a line through its codes the best minimum, whole
multiple or not; lines begun at the group's least weight are tried beside it. Then the block's numbers are set so that
the largest scale and minimum fit, and each group takes, of the multiples next to what it wants, those that leave the
least error with all of its codes chosen again.

llama.cpp's own fit (`make_qkx3_quants`) searches each group alike, and then rounds scale and minimum to the nearest
multiples.

Codes that are chosen otherwise than to nearest (GPTQ) are chosen on such a grid too: `as_grid` and `with_codes`.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gguf import GGMLQuantizationType

from zeropoint.algorithms import rtn
from zeropoint.errors import SchemeError
from zeropoint.gguf.superblocks import FORMATS, Format, SuperTensor
from zeropoint.reference import rounding
from zeropoint.values.qtensor import Codes, Floats, QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: The least number that a block's scales are multiples of: FP16's smallest, so that no step is zero.
TINY = np.float32(2.0**-24)

#: Codes by which the range of a group is made longer than its largest weight needs, where lines begin at the least.
STRETCHES = (-0.8, -0.4, 0.0, 0.4, 0.8)

#: Multiples tried for each group, beside the nearest to the scale it wants.
NEIGHBOURS = (0, -1, 1)


def fit(weight: Floats, stats: LayerStats | None, kind: GGMLQuantizationType) -> SuperTensor:
    """Round a finite float32 weight `[out, in]` to nearest on the grid found for it, errors weighed by `stats`.

    Raises `SchemeError` when rows do not divide into the format's blocks, or a scale overflows FP16.
    """
    form, (_, columns) = FORMATS[kind], weight.shape
    if columns % form.block:
        raise SchemeError(f"rows of {columns} weights do not divide into blocks of {form.block}")
    start = rtn.quantize(weight, stats, flat_scheme(kind), rtn.Options())
    importance = np.ones(columns, np.float32) if stats is None else rtn.importance_of(stats)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # numpy lets go of the interpreter lock
        found = pool.map(
            lambda part: _fit(weight[part], start.rows(part.start, part.stop), importance, kind),
            rounding.pieces(weight),
        )
        return stacked(list(found))


def flat_scheme(kind: GGMLQuantizationType) -> Scheme:
    """As many codes and groups, with a float scale each in place of nested ones."""
    form = FORMATS[kind]
    return Scheme(form.bits, "group", form.group, form.signed, "fp32")


def stacked(parts: list[SuperTensor]) -> SuperTensor:
    """Consecutive rows as one tensor."""
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
    """The weight as codes about 0 on one scale a group, and float32 `[out, in]`, what they lie above."""
    form = weight.format
    scheme = Scheme(form.bits, "group", form.group, True, "fp32")
    step, minimum = weight.step(), weight.minimum()
    centred = QuantizedTensor(scheme, weight.codes - _middle(form), step)
    if minimum is None:
        return centred, None
    return centred, np.repeat(step * np.float32(_middle(form)) - minimum, form.group, axis=1)


def with_codes(weight: SuperTensor, codes: Codes) -> SuperTensor:
    """The same grid with other codes, given about 0 as `as_grid` has them."""
    codes = codes + _middle(weight.format)
    return SuperTensor(weight.kind, codes, weight.d, weight.scales, weight.dmin, weight.minima)


def _middle(form: Format) -> np.int8:
    return np.int8(0 if form.signed else 1 << (form.bits - 1))


def _fit(
    weight: Floats, start: QuantizedTensor, importance: Floats, kind: GGMLQuantizationType
) -> SuperTensor:
    """`fit` of a few rows, from the grid without nesting. Inside, arrays are `[rows, blocks, groups(, weights)]`."""
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
    least = np.full(scale.shape, np.inf, np.float32)
    scales, minima = np.ones_like(scale), np.ones_like(scale)
    for step in NEIGHBOURS if form.most > 1 else NEIGHBOURS[:1]:
        tried = np.copysign(np.clip(nearest + step, 1, form.most), scale)
        size, lowest = tried * d[..., None], minima
        if minimum is not None and dmin is not None and form.groups > 1:
            lowest = _lowest(groups, counts, size, minimum, dmin, form)
        under = None if dmin is None else lowest * dmin[..., None]
        error = _error(groups, counts, size, under, form)
        better = error < least
        least = np.where(better, error, least)
        scales, minima = np.where(better, tried, scales), np.where(better, lowest, minima)
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
    """Scale and minimum of least weighted error for given `levels`; `bounded`: the minimum is not below 0.

    Where that is not a rising line, those that were there.
    """
    total = counts.sum(axis=3)
    weighted = levels * counts
    mean_level, mean = weighted.sum(axis=3) / total, (groups * counts).sum(axis=3) / total
    centred = levels - mean_level[..., None]
    centred *= counts
    spread = np.einsum("rbgw,rbgw->rbg", centred, levels)
    with np.errstate(all="ignore"):
        slope = np.einsum("rbgw,rbgw->rbg", centred, groups) / spread
        under = slope * mean_level - mean
        if bounded:
            through_zero = np.einsum("rbgw,rbgw->rbg", weighted, groups) / np.einsum(
                "rbgw,rbgw->rbg", weighted, levels
            )
            slope, under = np.where(under < 0, through_zero, slope), np.maximum(under, 0)
        sound = np.isfinite(slope) & np.isfinite(under) & (slope > 0)
    return np.where(sound, slope, scale), np.where(sound, under, minimum)


def _anchored(
    groups: Floats, counts: Floats, form: Format, scale: Floats, minimum: Floats
) -> tuple[Floats, Floats]:
    """The better, in each group, of a scale and minimum and of lines begun at its least weight.

    `rtn`'s zero points are whole codes and a minimum need not be: weights that once lay on a grid with a minimum
    between its codes are only found again from that minimum.
    """
    bounded = form.groups > 1
    lowest = np.minimum(groups.min(axis=3), 0) if bounded else groups.min(axis=3)
    reach = groups.max(axis=3) - lowest
    least = _error(groups, counts, scale, minimum, form)
    for stretch in STRETCHES:
        size = np.where(reach > 0, reach / np.float32(form.high + stretch), scale)
        levels = _levels(groups, size, -lowest, form)
        tried, under = _line(groups, counts, levels, size, -lowest, bounded=bounded)
        error = _error(groups, counts, tried, under, form)
        better = error < least
        least = np.where(better, error, least)
        scale, minimum = np.where(better, tried, scale), np.where(better, under, minimum)
    return scale, minimum


def _error(groups: Floats, counts: Floats, size: Floats, under: Floats | None, form: Format) -> Floats:
    """The weighted squared error of each group, rounded to nearest."""
    missed = _miss(groups, size, under, form)
    np.square(missed, out=missed)
    return np.asarray(np.einsum("rbgw,rbgw->rbg", missed, np.broadcast_to(counts, groups.shape)))


def _shared(largest: Floats, most: int) -> Floats:
    """The FP16 number of which `largest` is the multiple `most`; never zero."""
    with np.errstate(over="ignore"):
        number = (largest / np.float32(most)).astype(np.float16).astype(np.float32)
    if not np.isfinite(number).all():
        raise SchemeError("a scale overflows FP16")
    return np.where(number == 0, TINY, number)


def _lowest(
    groups: Floats, counts: Floats, size: Floats, minimum: Floats, dmin: Floats, form: Format
) -> Floats:
    """The multiple of `dmin` that suits codes chosen with steps of `size` and the `minimum` that was wanted."""
    values = _levels(groups, size, minimum, form) * size[..., None]
    wanted = ((values - groups) * counts).sum(axis=3) / counts.sum(axis=3)
    multiples: Floats = np.rint(wanted / dmin[..., None])
    return np.clip(multiples, 0, form.most, out=multiples)


def _levels(groups: Floats, size: Floats, under: Floats | None, form: Format) -> Floats:
    """The nearest codes, as float32."""
    levels: Floats = (groups if under is None else groups + under[..., None]) / size[..., None]
    np.rint(levels, out=levels)
    np.clip(levels, form.low, form.high, out=levels)
    return levels


def _miss(groups: Floats, size: Floats, under: Floats | None, form: Format) -> Floats:
    """What rounding to nearest leaves of each weight."""
    values = _levels(groups, size, under, form)
    values *= size[..., None]
    values -= groups if under is None else groups + under[..., None]
    return values
