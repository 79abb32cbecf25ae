"""Round the columns of a weight in turn, each to what makes up for the errors of those before it.

The C++ kernel takes a row as a lane of its vectors, so that it adds up errors in the order of the columns whatever the
number of threads. The plain computation below does the same by products of blocks, and takes over without the library.
"""

from __future__ import annotations

import ctypes

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.kernels.native import default_threads
from zeropoint.qtensor import expand_groups
from zeropoint.scheme import Scheme

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
    weight, ratio = (np.ascontiguousarray(given, np.float32) for given in (weight, ratio))
    shape = len(weight), scheme.groups_per_row(weight.shape[1])
    scale = np.ascontiguousarray(np.broadcast_to(scale, shape))
    zero = (
        None if zero_point is None else np.ascontiguousarray(np.broadcast_to(zero_point, shape), np.float32)
    )
    order = np.ascontiguousarray(order, np.int64)
    codes = np.empty(weight.shape, np.int8)
    status = library.load().zp_round_columns(
        ctypes.byref(library.groups(weight, scheme)),
        scale.ctypes.data,
        None if zero is None else zero.ctypes.data,
        ratio.ctypes.data,
        order.ctypes.data,
        codes.ctypes.data,
        threads or default_threads(),
    )
    library.check(status)
    return codes


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


def by_column(per_group: Floats, scheme: Scheme, shape: tuple[int, ...]) -> Floats:
    """Values per group as `[in, out]`."""
    return np.broadcast_to(expand_groups(per_group, scheme, shape[1]), shape).T
