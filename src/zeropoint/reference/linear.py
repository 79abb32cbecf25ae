"""Numpy reference of a quantized linear layer, written to be read, not to be fast.

Activations are quantized dynamically and symmetrically: `scale = absmax / qmax` per token, or per `group_size` channels
of a token, and `code = rint(x * (qmax / absmax))` in float32, half to even. `qmax` is 127 for 8-bit codes and 16319 for
16-bit codes. A group whose absmax is below `TINY` gets scale 0 and codes 0. A group with a NaN or an infinity gets
scale NaN and codes 0, so the token's outputs are NaN.

Products are summed as integers over each run of columns with one weight scale, zero point and activation scale; the
sums are scaled in float64.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Activation, ceil_div

TINY = np.float32(2.0**-112)  # with a smaller absmax, qmax / absmax could overflow


def quantize_activations(
    x: NDArray[np.float32], activation: Activation
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Return codes int16 `[m, k]` and scales float32 `[m, groups]` of a float32 input `[m, k]`."""
    rows, columns = x.shape
    qmax = np.float32(activation.qmax)
    size = activation.group_size or max(columns, 1)
    groups = ceil_div(columns, size)
    padded = np.zeros((rows, groups * size), np.float32)
    padded[:, :columns] = x
    grouped = padded.reshape(rows, groups, size)
    absmax = np.abs(grouped).max(axis=2, initial=0.0)
    finite = np.isfinite(absmax)
    used = finite & (absmax >= TINY)
    inverse = np.divide(qmax, absmax, out=np.zeros_like(absmax), where=used)
    scaled = np.where(used[..., None], grouped, np.float32(0)) * inverse[..., None]
    codes = np.rint(scaled).astype(np.int16)
    scale = np.where(used, absmax / qmax, np.where(finite, np.float32(0), np.float32(np.nan)))
    return codes.reshape(rows, -1)[:, :columns], scale.astype(np.float32)


def linear(
    x: NDArray[np.float32], weight: QuantizedTensor, bias: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Return `x @ weight.T + bias`, float32 `[m, out]`, for `x` float32 `[m, in]` and `bias` float32 `[out]`.

    If the weight's scheme has an activation format, the input is quantized first; else the product is one of floats.
    Raises `SchemeError` if the shapes of `x` and `weight` do not match.
    """
    if x.ndim != 2 or x.shape[1] != weight.shape[1]:
        raise SchemeError(f"an input of shape {x.shape} does not fit a weight of shape {weight.shape}")
    activation = weight.scheme.activation
    if activation is None:
        total = x.astype(np.float64) @ weight.dequantize().astype(np.float64).T
    else:
        total = _integer_product(x, weight, activation)
    if bias is not None:
        total = total + bias
    return total.astype(np.float32)


def _integer_product(
    x: NDArray[np.float32], weight: QuantizedTensor, activation: Activation
) -> NDArray[np.float64]:
    """Return the product `[m, out]` of a quantized input and a quantized weight."""
    columns = weight.shape[1]
    codes, input_scale = quantize_activations(x, activation)
    weight_size = weight.scheme.group_size or columns
    input_size = activation.group_size or columns
    total = np.zeros((x.shape[0], weight.shape[0]))
    edges = {*range(0, columns, weight_size), *range(0, columns, input_size), columns}
    starts = sorted(edges)
    for start, stop in pairwise(starts):
        w_group, x_group = start // weight_size, start // input_size
        part = weight.codes[:, start:stop].astype(np.int64)
        if weight.zero_point is not None:
            part = part - weight.zero_point[:, w_group, None]
        sums = codes[:, start:stop].astype(np.int64) @ part.T
        scale = weight.scale[:, w_group].astype(np.float64)
        total += sums * scale * input_scale[:, x_group, None].astype(np.float64)
    return total
