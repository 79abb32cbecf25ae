"""Quantize the columns of a weight one after the other: GPTQ error propagation, and coordinate descent on codes.

Both call C++ kernels (native/kernels/column_rounding.h, native/kernels/column_descent.h). A vector lane is a row there,
so every row adds errors in column order for any number of threads. `plain` and `plain_descend` compute the same in
numpy with matrix products, and are used where the native library is missing.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.kernels import library
from zeropoint.machine.cores import default_threads
from zeropoint.values.arrays import Codes, Floats
from zeropoint.values.qtensor import expand_groups
from zeropoint.values.scheme import Scheme

#: Columns that the numpy version rounds before it updates all other columns: enough for the update to be a matrix
#: product, few enough for their errors to stay in the cache.
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
    """Round finite float32 weights `[out, in]` with GPTQ error propagation; return int8 codes `[out, in]`.

    For j from the last to the first, column `order[j]` is rounded to the level nearest to
    `w_order[j] + sum_{i > j} ratio[j, i] e_i`, where `e_i` is the error left in column `order[i]`.
    `scale` and `zero_point` have shape `scheme.scale_shape`, `ratio` is `[in, in]`, `order` is `[in]`.
    Raises `SchemeError` if `ratio` or `order` has another shape, or `order` names a column that does not exist.
    """
    if library.missing() is not None:
        return plain(weight, scheme, scale, zero_point, ratio, order)
    ratio, order = np.ascontiguousarray(ratio, np.float32), np.ascontiguousarray(order, np.int64)
    columns = weight.shape[1]
    library.require_shape("ratio", ratio, (columns, columns))
    library.require_shape("order", order, (columns,))
    arguments = _Arguments(weight, scheme, scale, zero_point)
    codes = np.empty(weight.shape, np.int8)
    status = library.load().zp_round_columns(
        *arguments.pointers(),
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
    """Improve codes by coordinate descent on `tr(E H E')`; return int8 codes `[out, in]`.

    `E = W - W'` is the error of the dequantized codes `W'`. Each of `sweeps` sweeps changes one column after the other.
    With the other columns fixed, `tr(E H E')` is least where `W'_j` moves by `(H E)_j / H_jj`; column j gets the
    nearest codes. `hessian` `[in, in]` is symmetric with a positive diagonal. Raises `SchemeError` if `hessian` or
    `codes` has another shape, or `sweeps` is negative.
    """
    if library.missing() is not None:
        return plain_descend(weight, scheme, scale, zero_point, hessian, codes, sweeps)
    hessian = np.ascontiguousarray(hessian, np.float32)
    arguments = _Arguments(weight, scheme, scale, zero_point)
    improved = np.array(codes, np.int8, order="C")
    library.require_shape("hessian", hessian, (weight.shape[1],) * 2)
    library.require_shape("codes", improved, weight.shape)
    status = library.load().zp_descend_columns(
        *arguments.pointers(), hessian.ctypes.data, sweeps, improved.ctypes.data, threads or default_threads()
    )
    library.check(status)
    return improved


class _Arguments:
    """The arguments that both kernels share. Keeps the arrays alive that the kernels read."""

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
        """Return pointers to the groups, scales and zero points (`None`: no zero points)."""
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
    """Compute `round_columns` in numpy, on the transposed weight: a column of the weight is a contiguous row here."""
    shape = weight.shape
    weights, steps = weight.T[order], by_column(scale, scheme, shape)[order]
    zero = None if zero_point is None else by_column(zero_point.astype(np.float32), scheme, shape)[order]
    errors = np.empty_like(weights)
    codes = np.empty(weights.shape, np.int8)
    for end in range(len(weights), 0, -BLOCK):
        begin = max(end - BLOCK, 0)
        targets = weights[begin:end] + ratio[begin:end, end:] @ errors[end:]
        for j in range(end - 1, begin - 1, -1):
            code = targets[j - begin]
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
            np.subtract(weights[j], code, out=errors[j])
    result = np.empty(shape, np.int8)
    result[:, order] = codes.T
    return result


def plain_descend(
    weight: Floats,
    scheme: Scheme,
    scale: Floats,
    zero_point: Codes | None,
    hessian: Floats,
    codes: Codes,
    sweeps: int,
) -> Codes:
    """Compute `descend` in numpy."""
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
    """Return values per group, of shape `scheme.scale_shape`, expanded to `[in, out]`."""
    return np.broadcast_to(expand_groups(per_group, scheme, shape[1]), shape).T
