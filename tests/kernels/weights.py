"""Random quantized weights, and the tolerance within which kernels agree with the reference."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zeropoint.reference.linear import quantize_activations
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme, parse


def random_weight(
    text: str | Scheme, shape: tuple[int, int], seed: int = 0, *, exact: bool = False
) -> QuantizedTensor:
    """Codes over the whole range; scales are powers of two when `exact`."""
    scheme = parse(text) if isinstance(text, str) else text
    rng = np.random.default_rng(seed)
    codes = rng.integers(scheme.qmin, scheme.qmax + 1, shape, dtype=np.int8)
    grid = scheme.scale_shape(shape)
    scale = np.ldexp(1.0, rng.integers(-6, -3, grid)).astype(np.float32)
    if not exact:
        scale = scale * (1 + rng.integers(0, 128, grid).astype(np.float32) / 128)  # 8 bits: a bfloat16
    if scheme.scale_dtype == "nested":
        multiple = rng.integers(1, scheme.max_multiple + 1, grid) * rng.choice([-1, 1], grid)
        scale = multiple * np.ldexp(rng.integers(8, 16, (grid[0], 1)), -12)
    zero_point = None
    if not scheme.symmetric:
        zero_point = rng.integers(scheme.qmin, scheme.qmax + 1, grid, dtype=np.int8)
    return QuantizedTensor(scheme, codes, scale.astype(np.float32), zero_point)


def magnitude(x: NDArray[np.float32], weight: QuantizedTensor) -> NDArray[np.float64]:
    """Sum of the absolute products: what float32 rounding is relative to."""
    activation = weight.scheme.activation
    if activation is not None:
        codes, scale = quantize_activations(x, activation)
        spread = np.repeat(scale, activation.group_size or x.shape[1], axis=1)[:, : x.shape[1]]
        x = codes * spread
    return np.abs(x).astype(np.float64) @ np.abs(weight.dequantize()).astype(np.float64).T
