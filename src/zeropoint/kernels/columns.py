"""Round the columns of a weight in turn, each to what makes up for the errors of the others.

The C++ kernels take a row as a lane of its vectors, so that it adds up errors in the order of the columns whatever the
number of threads. The plain computations below do the same by products of blocks, and take over without the library.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.kernels.native import default_threads
from zeropoint.values.qtensor import expand_groups
from zeropoint.values.scheme import Scheme

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]

#: Columns between two updates of all that follow: enough for the update to be a matrix product, few enough for their
#: errors to stay in the cache.
BLOCK = 64


def round_columns(
    weight: Floats,
    scheme: Scheme,
    scale: Floats,
    zero_point: Codes | None,
    ratio: Floats,
    order: NDArray[np.int64],
    *,
    threads: int | None = None,
) -> Codes:
    """Codes `[out, in]` of finite float32 weights on the grid of `scale` and `zero_point`, `scheme.scale_shape` each.

    From the last j to the first, column `order[j]` becomes the level nearest to
    `w_order[j] + sum_{i > j} ratio[j, i] e_i`, with `e_i` the error that was left in column `order[i]`.
    """
    if library.missing() is not None:
        return plain(weight, scheme, scale, zero_point, ratio, order)
    ratio, order = np.ascontiguousarray(ratio, np.float32), np.ascontiguousarray(order, np.int64)
    columns = weight.shape[1]
    library.require_shape("ratio", ratio, (columns, columns))
    library.require_shape("order", order, (columns,))
    given = _Given(weight, scheme, scale, zero_point)
    codes = np.empty(weight.shape, np.int8)
    status = library.load().zp_round_columns(
        *given.pointers(),
        ratio.ctypes.data,
        order.ctypes.data,
        codes.ctypes.data,
        threads or default_threads(),
    )
    library.check(status)
    return codes


def descend(
    weight: Floats,
    scheme: Scheme,
    scale: Floats,
    zero_point: Codes | None,
    hessian: Floats,
    codes: Codes,
    sweeps: int,
    *,
    threads: int | None = None,
) -> Codes:
    """`codes` `[out, in]` changed one column after the other, `sweeps` times, each to those of the least `tr(E H E')`.

    E is the weight less what the codes stand for. With the other columns' errors fixed, that of column j is least where
    `W'_j` moves by `(H E)_j / H_jj`; of the levels the nearest to that is taken. `hessian` `[in, in]` is symmetric.
    """
    if library.missing() is not None:
        return plain_descend(weight, scheme, scale, zero_point, hessian, codes, sweeps)
    hessian = np.ascontiguousarray(hessian, np.float32)
    given = _Given(weight, scheme, scale, zero_point)
    found = np.array(codes, np.int8, order="C")
    library.require_shape("hessian", hessian, (weight.shape[1],) * 2)
    library.require_shape("codes", found, weight.shape)
    status = library.load().zp_descend_columns(
        *given.pointers(), hessian.ctypes.data, sweeps, found.ctypes.data, threads or default_threads()
    )
    library.check(status)
    return found


class _Given:
    """What both kernels are given; holds the memory that they read."""

    def __init__(self, weight: Floats, scheme: Scheme, scale: Floats, zero_point: Codes | None) -> None:
        shape = len(weight), scheme.groups_per_row(weight.shape[1])
        self._weight = np.ascontiguousarray(weight, np.float32)
        self._scale = np.ascontiguousarray(np.broadcast_to(scale, shape), np.float32)
        self._zero = (
            None
            if zero_point is None
            else np.ascontiguousarray(np.broadcast_to(zero_point, shape), np.float32)
        )
        self._groups = library.groups(self._weight, scheme)

    def pointers(self) -> tuple[Any, int, int | None]:
        """Of the groups, scales and zero points."""
        zero = None if self._zero is None else self._zero.ctypes.data
        return ctypes.byref(self._groups), self._scale.ctypes.data, zero


def plain(
    weight: Floats,
    scheme: Scheme,
    scale: Floats,
    zero_point: Codes | None,
    ratio: Floats,
    order: NDArray[np.int64],
) -> Codes:
    """`round_columns` in numpy. Inside, a column of the weight is a contiguous row."""
    shape = weight.shape
    wanted, steps = weight.T[order], by_column(scale, scheme, shape)[order]
    zero = None if zero_point is None else by_column(zero_point.astype(np.float32), scheme, shape)[order]
    errors = np.empty_like(wanted)
    codes = np.empty(wanted.shape, np.int8)
    for end in range(len(wanted), 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        made_up = wanted[begin:end] + ratio[begin:end, end:] @ errors[end:]
        for j in range(end - 1, begin - 1, -1):
            code = made_up[j - begin]
            code += ratio[j, j + 1 : end] @ errors[j + 1 : end]
            code /= steps[j]
            np.rint(code, out=code)
            if zero is not None:
                code += zero[j]
            np.clip(code, scheme.qmin, scheme.qmax, out=code)
            codes[j] = code
            if zero is not None:
                code -= zero[j]
            code *= steps[j]
            np.subtract(wanted[j], code, out=errors[j])
    found = np.empty(shape, np.int8)
    found[:, order] = codes.T
    return found


def plain_descend(
    weight: Floats,
    scheme: Scheme,
    scale: Floats,
    zero_point: Codes | None,
    hessian: Floats,
    codes: Codes,
    sweeps: int,
) -> Codes:
    """`descend` in numpy."""
    shape = weight.shape
    steps, levels = by_column(scale, scheme, shape), codes.T.astype(np.float32)
    zero = np.float32(0) if zero_point is None else by_column(zero_point.astype(np.float32), scheme, shape)
    errors = weight.T - (levels - zero) * steps
    for _ in range(sweeps):
        for begin in range(0, len(levels), BLOCK):
            end = min(begin + BLOCK, len(levels))
            pull = hessian[begin:end] @ errors
            changes = np.empty_like(pull)
            for j in range(begin, end):
                code = pull[j - begin]
                code -= hessian[j, begin:j] @ changes[: j - begin]
                code /= steps[j] * hessian[j, j]
                code += levels[j]
                np.rint(code, out=code)
                np.clip(code, scheme.qmin, scheme.qmax, out=code)
                np.multiply(code - levels[j], steps[j], out=changes[j - begin])
                levels[j] = code
            errors[begin:end] -= changes
    return np.ascontiguousarray(levels.T).astype(np.int8)


def by_column(per_group: Floats, scheme: Scheme, shape: tuple[int, ...]) -> Floats:
    """Values per group as `[in, out]`."""
    return np.broadcast_to(expand_groups(per_group, scheme, shape[1]), shape).T
