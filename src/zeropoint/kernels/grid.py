"""Which grid of levels fits a group of weights best, and how well a grid fits.

For the weights `x` of a group, the levels `L = clamp(round(x / s) + z) - z` of a scale s and zero point z fix the
best scale in closed form, `(x . L) / (L . L)` (as in llama.cpp's `make_qx_quants`); of the grids tried, the one that
leaves the least error with it wins. With `d = x - L s` the scale is `s + (L . d) / (L . L)` and the error
`d . d - (L . d)^2 / (L . L)`, of small numbers: float32 sums of them keep their digits at 8 bits too. All products
are weighted by the importance of each column.

The C++ kernel takes a row as a lane of its vectors. It gives what the plain computation below gives, which takes
over without the library and for one scale per tensor, but for float32 sums in another order.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.kernels.native import default_threads
from zeropoint.reference import rounding
from zeropoint.values.scheme import Scheme

Floats = NDArray[np.float32]

#: What a group of zeros is taken to reach.
TINY = np.float32(1e-30)


class Found(NamedTuple):
    """Of each group, `scheme.scale_shape`: its smallest and largest weight, widened to hold zero, and the best grid.

    Scales are as they come, not rounded to their type; where a group is extreme they may be 0 or not finite. Zero
    points are whole numbers, 0 where the scheme has none.
    """

    low: Floats
    high: Floats
    scale: Floats
    zero: Floats


def search(
    weight: Floats, scheme: Scheme, importance: Floats | None, parts: Floats, *, threads: int | None = None
) -> Found:
    """The best of the grids that cover these `parts` of a group's range, for finite float32 weights `[out, in]`.

    Symmetric grids put a part of the largest weight at their lower end, by a negative scale where it is positive
    and there is one code more below zero; with zero points, each part of one end is tried with each of the other.
    `importance` `[in]` is what an error in each column counts; None: all count alike.
    """
    if not _is_native(scheme):
        return plain_search(weight, scheme, importance, parts)
    given = _Given(weight, scheme, importance)
    found = Found(*(np.zeros(scheme.scale_shape(given.weight.shape), np.float32) for _ in range(4)))
    parts = np.ascontiguousarray(parts, np.float32)
    status = library.load().zp_grid_search(
        ctypes.byref(given.groups),
        given.importance.ctypes.data,
        parts.ctypes.data,
        len(parts),
        found.low.ctypes.data,
        found.high.ctypes.data,
        found.scale.ctypes.data,
        None if scheme.symmetric else found.zero.ctypes.data,
        threads or default_threads(),
    )
    library.check(status)
    return found


def errors(
    weight: Floats,
    scheme: Scheme,
    importance: Floats | None,
    scale: Floats,
    zero: Floats | None,
    *,
    threads: int | None = None,
) -> Floats:
    """The weighted squared error of each group on each of some grids: `[grids, out, groups]`, like `scale` and `zero`
    (float32; None: 0). One of numbers near the largest float32 may be infinite, or NaN."""
    if not _is_native(scheme):
        return plain_errors(weight, scheme, importance, scale, zero)
    given = _Given(weight, scheme, importance)
    scale = np.ascontiguousarray(scale, np.float32)
    zero = None if zero is None else np.ascontiguousarray(zero, np.float32)
    library.require_shape("scale", scale, (len(scale), *scheme.scale_shape(given.weight.shape)))
    if zero is not None:
        library.require_shape("zero", zero, scale.shape)
    found = np.empty_like(scale)
    status = library.load().zp_grid_errors(
        ctypes.byref(given.groups),
        given.importance.ctypes.data,
        len(scale),
        scale.ctypes.data,
        None if zero is None else zero.ctypes.data,
        found.ctypes.data,
        threads or default_threads(),
    )
    library.check(status)
    return found


def _is_native(scheme: Scheme) -> bool:
    """One scale per tensor is a group without a row."""
    return scheme.granularity != "tensor" and library.missing() is None


class _Given:
    """What both kernels are given; holds the memory that they read."""

    def __init__(self, weight: Floats, scheme: Scheme, importance: Floats | None) -> None:
        columns = weight.shape[1]
        self.weight = np.ascontiguousarray(weight, np.float32)
        self.importance = (
            np.ones(columns, np.float32)
            if importance is None
            else np.ascontiguousarray(importance, np.float32)
        )
        library.require_shape("importance", self.importance, (columns,))
        self.groups = library.groups(self.weight, scheme)


def plain_search(weight: Floats, scheme: Scheme, importance: Floats | None, parts: Floats) -> Found:
    """`search` in numpy."""
    low, high = rounding.group_range(weight, scheme)
    found = Found(low, high, np.zeros_like(low), np.zeros_like(low))
    for rows, piece in pieces(weight, scheme):
        counts = 1 if importance is None else rounding.grouped(importance[None], scheme)
        with np.errstate(all="ignore"):  # extreme weights overflow an error, which then simply does not win
            found.scale[rows], found.zero[rows] = _best(piece, low[rows], high[rows], counts, scheme, parts)
    return found


def plain_errors(
    weight: Floats, scheme: Scheme, importance: Floats | None, scale: Floats, zero: Floats | None
) -> Floats:
    """`errors` in numpy."""
    found = np.empty_like(scale)
    for rows, piece in pieces(weight, scheme):
        counts = 1 if importance is None else rounding.grouped(importance[None], scheme)
        for grid in range(len(scale)):
            by, offset = scale[grid, rows, :, None], 0 if zero is None else zero[grid, rows, :, None]
            with np.errstate(all="ignore"):
                error = _levels(piece / by, offset, scheme) * by - piece
                found[grid, rows] = np.einsum("rgs,rgs->rg", error * counts, error)
    return found


def pieces(weight: Floats, scheme: Scheme) -> Iterator[tuple[slice, Floats]]:
    """Some rows of the scales at a time, and their weights `[rows, groups, size]`."""
    if scheme.granularity == "tensor":
        yield slice(None), rounding.grouped(weight, scheme)
        return
    for rows in rounding.pieces(weight):
        yield rows, rounding.grouped(weight[rows], scheme)


def _best(
    groups: Floats, low: Floats, high: Floats, counts: Any, scheme: Scheme, parts: Floats
) -> tuple[Floats, Floats]:
    """Scales and zero points `[rows, groups]` of groups `[rows, groups, size]`."""
    best, zero, least = np.zeros_like(low), np.zeros_like(low), np.full_like(low, np.inf)
    for tried, offset in _candidates(low, high, scheme, parts):
        levels = _levels(groups * (np.float32(1) / tried)[..., None], offset[..., None], scheme)
        left, counted = groups - levels * tried[..., None], levels * counts
        product = np.einsum("rgs,rgs->rg", counted, left)
        square = np.maximum(np.einsum("rgs,rgs->rg", counted, levels), np.float32(1e-12))
        error = np.einsum("rgs,rgs->rg", left * counts, left) - product * product / square
        better = error < least
        least = np.where(better, error, least)
        best = np.where(better, tried + product / square, best)
        zero = np.where(better, offset, zero)
    return best, zero


def _candidates(low: Floats, high: Floats, scheme: Scheme, parts: Floats) -> Iterator[tuple[Floats, Floats]]:
    """Grids to try: their scales and zero points."""
    if scheme.symmetric:
        most = np.maximum(np.maximum(-low, high), TINY)
        # Without a longer side there is no reason for a negative scale.
        most = np.where((scheme.qmin == -scheme.qmax) | (-low > high), -most, most)
        for part in parts:
            yield most * part / np.float32(scheme.qmin), np.zeros_like(low)
        return
    low, high = np.minimum(low, -TINY), np.maximum(high, TINY)
    for left in parts:
        for right in parts:
            scale = (high * right - low * left) / np.float32(scheme.qmax - scheme.qmin)
            zero = np.rint(np.float32(scheme.qmin) - low * left / scale)
            yield scale, np.clip(zero, scheme.qmin, scheme.qmax)


def _levels(steps: Floats, zero: Any, scheme: Scheme) -> Floats:
    """Codes less their zero point, float32; `steps` is overwritten."""
    np.rint(steps, out=steps)
    return np.clip(steps, scheme.qmin - zero, scheme.qmax - zero, out=steps)
