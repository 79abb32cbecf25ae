"""The numbers' truth for a quantized linear layer: numpy, slow and plain.

Activations are quantized dynamically and symmetrically: `scale = absmax / qmax` over one token, or over
`group_size` channels of it, and `code = rint(x * (qmax / absmax))` in float32, half to even; `qmax` is 127 for
int8 codes, 16319 for int16. A group whose
absmax is below `TINY` has scale 0 and codes 0. A group that holds a NaN or an infinity has scale NaN and
codes 0, so that its token's outputs are NaN.

Products are summed as integers wherever neither the weight's scale and zero point nor the activation's
scale changes, and scaled in float64.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Activation, ceil_div

TINY = np.float32(2.0**-112)  # below it qmax / absmax could overflow


def quantize_activations(
    x: NDArray[np.float32], activation: Activation
) -> tuple[NDArray[np.int16], NDArray[np.float32]]:
    """Codes int16 `[m, k]` and scales float32 `[m, groups]` of a float32 input `[m, k]`."""
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
    """`x @ weight.T + bias`, float32 `[m, out]`, for `x` float32 `[m, in]`.

    With `weight.scheme.activation` the input is quantized first; without, the product is one of floats.
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
