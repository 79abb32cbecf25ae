"""`QuantizedTensor`: a quantized weight as codes, scales and zero points, before any packing.

Its `dequantize` defines the values of every integer format. Kernels, exporters and artifacts are tested against it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.arrays import Codes, Floats
from zeropoint.values.scheme import Scheme


class Coded(Protocol):
    """A quantized weight `[out, in]`: a `QuantizedTensor`, or another runtime's format that no scheme describes."""

    @property
    def shape(self) -> tuple[int, int]: ...

    def rows(self, start: int, stop: int) -> Self: ...

    def dequantize(self) -> Floats: ...


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedTensor:
    """One quantized weight, one byte per code.

    - `codes`: int8 `[out, in]`, each within `[scheme.qmin, scheme.qmax]`; not packed, whatever the bits (artifacts and
      kernels pack codes themselves);
    - `scale`: float32 `scheme.scale_shape(shape)`, each value exactly representable in
      `scheme.scale_dtype`;
    - `zero_point`: int8 of the same shape as `scale`, within the code range; `None` if the scheme is symmetric.

    `w[i, j] = (codes[i, j] - zero_point[i, g]) * scale[i, g]` with `g` the group of column `j`.
    Raises `SchemeError` if an array's dtype, shape or range does not match the scheme.
    """

    scheme: Scheme
    codes: Codes
    scale: Floats
    zero_point: Codes | None = None

    def __post_init__(self) -> None:
        scheme = self.scheme
        if scheme.is_float:
            raise SchemeError(f"a QuantizedTensor holds integer codes; {scheme} is a float format")
        if self.codes.ndim != 2 or self.codes.dtype != np.int8:
            raise SchemeError(f"codes must be a 2-D int8 array, not {self.codes.dtype} {self.codes.shape}")
        expected = scheme.scale_shape(self.shape)
        if self.scale.shape != expected or self.scale.dtype != np.float32:
            raise SchemeError(
                f"scale must be float32 {expected} for {scheme}, not {self.scale.dtype} {self.scale.shape}"
            )
        if not np.isfinite(self.scale).all():
            raise SchemeError("a scale is NaN or infinite")
        if (self.zero_point is None) != scheme.symmetric:
            raise SchemeError(f"{scheme} {'has no' if scheme.symmetric else 'needs a'} zero point")
        if self.zero_point is not None and (
            self.zero_point.shape != expected or self.zero_point.dtype != np.int8
        ):
            raise SchemeError(f"zero_point must be int8 {expected}, not {self.zero_point.dtype}")
        for name, values in (("code", self.codes), ("zero point", self.zero_point)):
            if (
                values is not None
                and values.size
                and not (scheme.qmin <= int(values.min()) and int(values.max()) <= scheme.qmax)
            ):
                raise SchemeError(f"a {name} lies outside [{scheme.qmin}, {scheme.qmax}] of {scheme}")

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """Return the bytes that an artifact stores for the weight, see `Scheme.nbytes`."""
        return self.scheme.nbytes(self.shape)

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Return rows `start` to `stop` (exclusive) as a tensor of views; nothing is copied."""
        part = slice(None) if self.scheme.granularity == "tensor" else slice(start, stop)
        zero_point = None if self.zero_point is None else self.zero_point[part]
        return QuantizedTensor(self.scheme, self.codes[start:stop], self.scale[part], zero_point)

    def dequantize(self) -> Floats:
        """Return float32 `[out, in]`: `(codes - zero_point) * scale`, each product rounded once."""
        columns = self.shape[1]
        scale = expand_groups(self.scale, self.scheme, columns)
        codes = self.codes.astype(np.float32)
        if self.zero_point is not None:
            codes -= expand_groups(self.zero_point, self.scheme, columns)
        codes *= scale
        return codes


Number = TypeVar("Number", bound=np.generic)


def expand_groups(per_group: NDArray[Number], scheme: Scheme, columns: int) -> NDArray[Number]:
    """Repeat per-group values `[rows, groups]` to `[rows, columns]`.

    Values of other granularities are returned unchanged: numpy broadcasts them.
    """
    if scheme.granularity != "group":
        return per_group
    return np.repeat(per_group, scheme.group_size, axis=1)[:, :columns]


#: A weight in a stream: quantized, or a kept tensor in the checkpoint's own dtype (float32, float16,
#: `ml_dtypes.bfloat16`, or integers).
Weight: TypeAlias = QuantizedTensor | NDArray[Any]
