"""The numpy backend: takes every integer format on any CPU, slowly. It is the last one in `BACKENDS`."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.reference.linear import linear as reference_linear
from zeropoint.values.arrays import Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """An unchanged `QuantizedTensor`: this backend has no layout of its own."""

    weight: QuantizedTensor

    @property
    def nbytes(self) -> int:
        """Return the bytes of codes, scales and zero points."""
        zero_point = self.weight.zero_point
        return (
            self.weight.codes.nbytes
            + self.weight.scale.nbytes
            + (0 if zero_point is None else zero_point.nbytes)
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Return `(out, in)`."""
        return self.weight.shape

    @property
    def scheme(self) -> Scheme:
        return self.weight.scheme


def refusal(scheme: Scheme, shape: tuple[int, int], device: str = "cpu") -> str | None:
    """Return why this backend cannot take a weight `[out, in]` (a float format, not on the CPU), or `None`."""
    if device != "cpu":
        return f"runs on the CPU, not on {device}"
    return f"{scheme} is a float format" if scheme.is_float else None


def pack(weight: QuantizedTensor) -> Packed:
    """Wrap the weight unchanged."""
    return Packed(weight)


def unpack(packed: Packed) -> QuantizedTensor:
    """Return the weight that was packed."""
    return packed.weight


def linear(
    x: Floats,
    packed: Packed,
    bias: Floats | None = None,
    *,
    threads: int | None = None,
    out: Floats | None = None,
) -> Floats:
    """Return `x @ w.T + bias`, float32 `[m, out]`, for float32 `x` `[m, in]` and `bias` `[out]`.

    `out`, if given, receives the result. `threads` has no effect. Raises `SchemeError` if `out` does not fit.
    """
    result = reference_linear(x, packed.weight, bias)
    if out is None:
        return result
    if out.shape != result.shape or out.dtype != np.float32:
        raise SchemeError(f"out must be float32 of shape {result.shape}, not {out.dtype} {out.shape}")
    out[...] = result
    return out


def linear_ptr(x_ptr: int, rows: int, packed: Packed, bias_ptr: int, out_ptr: int, threads: int) -> None:
    """Compute `linear` on addresses of contiguous float32 memory; `bias_ptr` 0: no bias."""
    features_out, features_in = packed.shape
    bias = _view(bias_ptr, 1, features_out)[0] if bias_ptr else None
    linear(_view(x_ptr, rows, features_in), packed, bias, out=_view(out_ptr, rows, features_out))


def rows(packed: Packed, ids: NDArray[np.int64]) -> Floats:
    """Return rows `ids` `[n]` of the dequantized weight, float32 `[n, in]`. Raises `SchemeError` for a wrong id."""
    numbers = np.asarray(ids, np.int64)
    if numbers.size and not (int(numbers.min()) >= 0 and int(numbers.max()) < packed.shape[0]):
        raise SchemeError(f"a row number lies outside a weight with {packed.shape[0]} rows")
    w = packed.weight
    tensor = w.scheme.granularity == "tensor"
    zero_point = w.zero_point if w.zero_point is None or tensor else w.zero_point[numbers]
    scale = w.scale if tensor else w.scale[numbers]
    return QuantizedTensor(w.scheme, w.codes[numbers], scale, zero_point).dequantize()


def _view(address: int, rows: int, columns: int) -> Floats:
    """Return the float32 matrix `[rows, columns]` at an address, without a copy."""
    memory = (ctypes.c_float * (rows * columns)).from_address(address)
    return np.ctypeslib.as_array(memory).reshape(rows, columns)
