"""The native backend: integer kernels in C++ (native/) for scalar code, AVX2, AVX-512 VNNI and AMX, and for
ARM64 NEON, dot products and int8 matrices.

The library chooses the instruction set level at its first use; `ZEROPOINT_ISA` forces one.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError, UnsupportedError
from zeropoint.kernels import library
from zeropoint.machine.cores import default_threads
from zeropoint.values.arrays import Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme


class Packed:
    """A weight in the kernels' layout. Owns its memory. Usable in a forked child, but not picklable."""

    __slots__ = ("__weakref__", "_finalizer", "address", "nbytes", "scheme", "shape")

    def __init__(self, address: int, nbytes: int, scheme: Scheme, shape: tuple[int, int]) -> None:
        self.address = address
        self.nbytes = nbytes
        self.scheme = scheme
        self.shape = shape
        self._finalizer = weakref.finalize(self, library.load().zp_free, ctypes.c_void_p(address))
        self._finalizer.atexit = False

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a packed weight is private to its process: save the QuantizedTensor and pack it again"
        )


def format_of(scheme: Scheme, shape: tuple[int, int]) -> library.Format:
    """Return the `zp_format` of an integer weight `[out, in]`."""
    activation = scheme.activation
    return library.Format(
        rows=shape[0],
        columns=shape[1],
        kind=library.INTEGER,
        bits=scheme.bits,
        group_size=scheme.group_size,
        per_tensor=int(scheme.granularity == "tensor"),
        asymmetric=int(not scheme.symmetric),
        activation=library.ACTIVATION_FLOAT if activation is None else activation.group_size,
        activation_bits=0 if activation is None else activation.bits,
        scale_type=library.SCALE_TYPES.get(scheme.scale_dtype, library.SCALE_TYPES["fp32"]),
    )


def refusal(scheme: Scheme, shape: tuple[int, int], device: str = "cpu") -> str | None:
    """Return why these kernels cannot take such a weight `[out, in]`, or `None`."""
    if device != "cpu":
        return f"runs on the CPU, not on {device}"
    if scheme.is_float:
        return f"{scheme} is a float format"
    reason = library.missing()
    if reason is not None:
        return reason
    try:
        library.check(library.load().zp_check(ctypes.byref(format_of(scheme, shape))))
    except (SchemeError, UnsupportedError) as error:
        return str(error)
    return None


def pack(weight: QuantizedTensor) -> Packed:
    """Pack a weight in the kernels' layout. Raises `UnsupportedError` with the reason of `refusal`."""
    address = pack_at(weight)
    nbytes: int = library.load().zp_weight_bytes(address)
    return Packed(address, nbytes, weight.scheme, weight.shape)


def pack_at(weight: QuantizedTensor) -> int:
    """Pack a weight and return the address of its `zp_weight`, which the caller frees. Raises like `pack`."""
    reason = refusal(weight.scheme, weight.shape)
    if reason is not None:
        raise UnsupportedError(f"the native kernels do not take {weight.scheme} {weight.shape}: {reason}")
    codes = np.ascontiguousarray(weight.codes)
    scale = np.ascontiguousarray(weight.scale)
    zero_point = None if weight.zero_point is None else np.ascontiguousarray(weight.zero_point)
    address = ctypes.c_void_p()
    status = library.load().zp_pack(
        ctypes.byref(format_of(weight.scheme, weight.shape)),
        codes.ctypes.data,
        scale.ctypes.data,
        None if zero_point is None else zero_point.ctypes.data,
        ctypes.byref(address),
    )
    library.check(status)
    assert address.value is not None
    return address.value


def unpack(packed: Packed) -> QuantizedTensor:
    """Return the weight that was packed, exactly."""
    scheme, (rows, columns) = packed.scheme, packed.shape
    stored = scheme.scale_shape(packed.shape)
    grid = (rows, stored[1])
    codes, scale = np.empty((rows, columns), np.int8), np.empty(grid, np.float32)
    zero_point = None if scheme.symmetric else np.empty(grid, np.int8)
    status = library.load().zp_unpack(
        packed.address,
        codes.ctypes.data,
        scale.ctypes.data,
        None if zero_point is None else zero_point.ctypes.data,
    )
    library.check(status)
    # With granularity tensor, zp_unpack repeats the one scale and zero point in every row: keep the first row.
    if zero_point is not None:
        zero_point = zero_point[: stored[0]]
    return QuantizedTensor(scheme, codes, scale[: stored[0]], zero_point)


def linear(
    x: Floats,
    packed: Packed,
    bias: Floats | None = None,
    *,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    """Return `x @ w.T + bias`, float32 `[m, out]`, for C-contiguous float32 `x` `[m, in]` and `bias` `[out]`.

    `out`, if given, receives the result. A row's result depends neither on `threads` nor on the other rows of the call.
    Raises `SchemeError` if an array has the wrong shape or type, or is not contiguous.
    """
    rows, (features_out, features_in) = len(x), packed.shape
    _require(x, (rows, features_in), "x")
    if bias is not None:
        _require(bias, (features_out,), "bias")
    if out is None:
        out = np.empty((rows, features_out), np.float32)
    else:
        _require(out, (rows, features_out), "out")
    bias_ptr = 0 if bias is None else bias.ctypes.data
    linear_ptr(x.ctypes.data, rows, packed, bias_ptr, out.ctypes.data, threads or default_threads())
    return out


def linear_ptr(x_ptr: int, rows: int, packed: Packed, bias_ptr: int, out_ptr: int, threads: int) -> None:
    """Compute `linear` on addresses of contiguous float32 memory; `bias_ptr` 0: no bias. The caller checks shapes."""
    features_out, features_in = packed.shape
    library.check(
        library.load().zp_linear(
            packed.address, x_ptr, rows, features_in, bias_ptr, out_ptr, features_out, threads
        )
    )


def rows(packed: Packed, ids: NDArray[np.int64]) -> Floats:
    """Return rows `ids` `[n]` of the dequantized weight, float32 `[n, in]`. Raises `SchemeError` for a wrong id."""
    numbers = np.ascontiguousarray(ids, np.int64)
    if numbers.ndim != 1:
        raise SchemeError(f"row numbers must be one-dimensional, not {numbers.shape}")
    out = np.empty((len(numbers), packed.shape[1]), np.float32)
    status = library.load().zp_rows(
        packed.address, numbers.ctypes.data, len(numbers), out.ctypes.data, packed.shape[1]
    )
    library.check(status)
    return out


def _require(array: NDArray[np.generic], shape: tuple[int, ...], name: str) -> None:
    """Raise `SchemeError` unless an array is contiguous float32 of this shape."""
    if array.shape != shape or array.dtype != np.float32 or not array.flags.c_contiguous:
        raise SchemeError(
            f"{name} must be contiguous float32 of shape {shape}, not {array.dtype} {array.shape}"
        )
