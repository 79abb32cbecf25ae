"""Search the best scale and zero point (a grid) of each group of weights, and measure the error of given grids.

A candidate scale s and zero point z give the weights `x` of a group the levels `L = clamp(round(x / s) + z) - z`. For
these levels the best scale is `(x . L) / (L . L)` (as in llama.cpp's `make_qx_quants`). The candidate with the least
error at its best scale wins. With `d = x - L s` the best scale is `s + (L . d) / (L . L)` and its squared error is
`d . d - (L . d)^2 / (L . L)`: sums of small numbers, so float32 is precise enough for 8 bits too. All products are
weighted by the importance of each column.

In the C++ kernels a vector lane is a row. `plain_search` and `plain_errors` compute the same in numpy, up to the order
of float32 sums. They are used where the native library is missing, and for one scale per tensor.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from zeropoint.kernels import library
from zeropoint.machine.cores import default_threads
from zeropoint.reference import rounding
from zeropoint.values.arrays import Floats
from zeropoint.values.scheme import Scheme

#: The largest magnitude that a group of zeros is taken to have.
TINY = np.float32(1e-30)


class Found(NamedTuple):
    """The result of `search`, arrays of shape `scheme.scale_shape`.

    `low` and `high` are the smallest and largest weight of each group, at most and at least 0. `scale` is not rounded
    to the scheme's scale type; for a group of extreme weights it may be 0 or not finite. `zero` holds whole numbers, 0
    if the scheme is symmetric.
    """

    low: Floats
    high: Floats
    scale: Floats
    zero: Floats


def search(
    weight: Floats, scheme: Scheme, importance: Floats | None, parts: Floats, *, threads: int | None = None
) -> Found:
    """Return the best of the candidate grids of each group, for finite float32 weights `[out, in]`.

    Candidates cover fractions (`parts`) of the group's range. Symmetric: each fraction of the weight of largest
    magnitude is placed at `qmin`; the scale is negative if that weight is positive and there is one more code below
    zero than above. Asymmetric: each fraction of the smallest weight is combined with each fraction of the largest.
    `importance` `[in]` weights the squared error of each column; `None`: all alike.
    """
    if not _is_native(scheme):
        return plain_search(weight, scheme, importance, parts)
    arguments = _Arguments(weight, scheme, importance)
    result = Found(*(np.zeros(scheme.scale_shape(arguments.weight.shape), np.float32) for _ in range(4)))
    parts = np.ascontiguousarray(parts, np.float32)
    status = library.load().zp_grid_search(
        ctypes.byref(arguments.groups),
        arguments.importance.ctypes.data,
        parts.ctypes.data,
        len(parts),
        result.low.ctypes.data,
        result.high.ctypes.data,
        result.scale.ctypes.data,
        None if scheme.symmetric else result.zero.ctypes.data,
        threads or default_threads(),
    )
    library.check(status)
    return result


def errors(
    weight: Floats,
    scheme: Scheme,
    importance: Floats | None,
    scale: Floats,
    zero: Floats | None,
    *,
    threads: int | None = None,
) -> Floats:
    """Return the weighted squared error of each group on each of several grids, float32 `[grids, out, groups]`.

    `scale` and `zero` (`None`: 0) are float32 of the same shape. An error of weights near the largest float32 may be
    infinite or NaN. Raises `SchemeError` if a shape differs.
    """
    if not _is_native(scheme):
        return plain_errors(weight, scheme, importance, scale, zero)
    arguments = _Arguments(weight, scheme, importance)
    scale = np.ascontiguousarray(scale, np.float32)
    zero = None if zero is None else np.ascontiguousarray(zero, np.float32)
    library.require_shape("scale", scale, (len(scale), *scheme.scale_shape(arguments.weight.shape)))
    if zero is not None:
        library.require_shape("zero", zero, scale.shape)
    error = np.empty_like(scale)
    status = library.load().zp_grid_errors(
        ctypes.byref(arguments.groups),
        arguments.importance.ctypes.data,
        len(scale),
        scale.ctypes.data,
        None if zero is None else zero.ctypes.data,
        error.ctypes.data,
        threads or default_threads(),
    )
    library.check(status)
    return error


def _is_native(scheme: Scheme) -> bool:
    """Return whether the C++ kernels take the scheme. They work on groups within a row, not on whole tensors."""
    return scheme.granularity != "tensor" and library.missing() is None


class _Arguments:
    """The arguments that both kernels share. Keeps the arrays alive that the kernels read."""

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
    """Compute `search` in numpy."""
    low, high = rounding.group_range(weight, scheme)
    result = Found(low, high, np.zeros_like(low), np.zeros_like(low))
    for rows, piece in pieces(weight, scheme):
        counts = 1 if importance is None else rounding.grouped(importance[None], scheme)
        with np.errstate(
            all="ignore"
        ):  # with extreme weights an error may overflow; that candidate does not win
            result.scale[rows], result.zero[rows] = _best(piece, low[rows], high[rows], counts, scheme, parts)
    return result


def plain_errors(
    weight: Floats, scheme: Scheme, importance: Floats | None, scale: Floats, zero: Floats | None
) -> Floats:
    """Compute `errors` in numpy."""
    result = np.empty_like(scale)
    for rows, piece in pieces(weight, scheme):
        counts = 1 if importance is None else rounding.grouped(importance[None], scheme)
        for grid in range(len(scale)):
            by, offset = scale[grid, rows, :, None], 0 if zero is None else zero[grid, rows, :, None]
            with np.errstate(all="ignore"):
                error = _levels(piece / by, offset, scheme) * by - piece
                result[grid, rows] = np.einsum("rgs,rgs->rg", error * counts, error)
    return result


def pieces(weight: Floats, scheme: Scheme) -> Iterator[tuple[slice, Floats]]:
    """Yield slices of the rows of `scheme.scale_shape`, each with its weights `[rows, groups, size]`."""
    if scheme.granularity == "tensor":
        yield slice(None), rounding.grouped(weight, scheme)
        return
    for rows in rounding.pieces(weight):
        yield rows, rounding.grouped(weight[rows], scheme)


def _best(
    groups: Floats, low: Floats, high: Floats, counts: Any, scheme: Scheme, parts: Floats
) -> tuple[Floats, Floats]:
    """Return the best scales and zero points `[rows, groups]` of groups `[rows, groups, size]`."""
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
    """Yield the candidate grids: their scales and zero points `[rows, groups]`."""
    if scheme.symmetric:
        most = np.maximum(np.maximum(-low, high), TINY)
        # With as many codes below zero as above, a negative scale has no advantage.
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
    """Round weights, given in units of the scale, to levels (code - zero point), float32. Overwrites `steps`."""
    np.rint(steps, out=steps)
    return np.clip(steps, scheme.qmin - zero, scheme.qmax - zero, out=steps)
