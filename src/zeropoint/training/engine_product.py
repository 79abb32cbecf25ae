"""The engine's quantized product in plain torch: the same integers, rounded in the same places, on any device.

The kernels sum products of codes as integers, and round to float32 in a fixed order (native/kernels/kernel.cpp). Here
the integer sums are matrix products in float64, which are exact below 2^53, and each rounding of the kernels is one
rounding here. So the output equals the kernels' bit for bit, whatever order the sums are computed in. It is for checks
and for small models: a scheme with a float scale per group takes one matrix product for each group.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from zeropoint.reference.linear import TINY
from zeropoint.values.scheme import Activation, Scheme, ceil_div


def quantize_input(x: Tensor, activation: Activation) -> tuple[Tensor, Tensor]:
    """Return codes (whole numbers, float32 `[m, k]`) and scales (float32 `[m, groups]`) of float32 `x` `[m, k]`.

    See `zeropoint.reference.linear.quantize_activations`, which returns the same numbers.
    """
    rows, columns = x.shape
    size = activation.group_size or max(columns, 1)
    groups = ceil_div(columns, size)
    grouped = torch.nn.functional.pad(x, (0, groups * size - columns)).view(rows, groups, size)
    absmax = grouped.abs().amax(2)
    finite = absmax.isfinite()
    used = finite & (absmax >= float(TINY))
    qmax = torch.full_like(
        absmax, activation.qmax
    )  # torch divides by numbers, not tensors, through their reciprocals
    inverse = torch.where(used, qmax / absmax, 0.0)
    codes = torch.round(torch.where(used[..., None], grouped, 0.0) * inverse[..., None])
    scale = torch.where(used, absmax / qmax, torch.where(finite, 0.0, torch.nan))
    return codes.view(rows, -1)[:, :columns], scale


def product(
    x: Tensor, codes: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: Scheme, bias: Tensor | None
) -> Tensor:
    """Return `x @ weight.T + bias`, float32 `[m, out]`, as the engine computes it for float32 `x` `[m, in]`.

    `codes` `[out, in]`, and `scale` and `zero_point` of `scheme.scale_shape`, are those of a `QuantizedTensor`.
    """
    columns = codes.shape[1]
    group = scheme.group_size if scheme.group_size < columns else 0
    levels = codes.double()
    if zero_point is not None:
        levels = levels - _expanded(zero_point.double(), group, columns)
    if scheme.activation is None:
        total = _float_input(x, levels, scale, group)
    else:
        total = _integer_input(x, levels, scale, scheme, group)
    return total if bias is None else total + bias.float()


def _integer_input(x: Tensor, levels: Tensor, scale: Tensor, scheme: Scheme, group: int) -> Tensor:
    """Return the product of quantized inputs; `levels` are codes minus zero points, `group` 0 is one scale a row."""
    assert scheme.activation is not None
    columns = levels.shape[1]
    codes, input_scale = quantize_input(x, scheme.activation)
    codes = codes.double()
    input_group = scheme.activation.group_size if scheme.activation.group_size < columns else 0
    if scheme.scale_dtype == "nested":  # the engine multiplies codes by the integers of two-level scales
        base = nested_base(scale, scheme.max_multiple)
        levels = levels * _expanded(torch.round(scale / base).double(), group, columns)
        scale, group = base, 0
    sizes = [size for size in (group, input_group) if size]
    segment = min(sizes, default=columns)
    if any(size % segment for size in sizes):
        return _reference_sums(codes, input_scale, levels, scale, group, input_group)
    total = x.new_zeros(x.shape[0], levels.shape[0])
    for start in range(0, columns, segment):
        stop = min(start + segment, columns)
        sums = codes[:, start:stop] @ levels[:, start:stop].T
        value = _joined(sums) if scheme.activation.bits == 16 else sums.float()
        if group and input_group:
            value = value * scale[:, start // group]
        factor = input_scale[:, start // input_group, None] if input_group else None
        if factor is None:
            factor = scale[:, start // group] if group else torch.ones_like(total[0])
        total = fused_multiply_add(value, factor, total)
    if not group:
        total = total * scale[:, 0]
    return total if input_group else total * input_scale


def _joined(sums: Tensor) -> Tensor:
    """Return sums of 16-bit codes as float32, as the kernels join the sums of two limbs (native/kernels/output.h)."""
    high = torch.floor(sums / 128)
    return (high.float().double() * 128 + (sums - high * 128)).float()


def _reference_sums(
    codes: Tensor, input_scale: Tensor, levels: Tensor, scale: Tensor, group: int, input_group: int
) -> Tensor:
    """Return the product for groups that do not nest, which `zeropoint.reference.linear` sums in float64."""
    columns = levels.shape[1]
    total = codes.new_zeros(codes.shape[0], levels.shape[0])
    edges = sorted({*range(0, columns, group), *range(0, columns, input_group), columns})
    for start, stop in pairwise(edges):
        sums = codes[:, start:stop] @ levels[:, start:stop].T
        total += (
            sums * scale[:, start // group].double() * input_scale[:, start // input_group, None].double()
        )
    return total.float()


def _float_input(x: Tensor, levels: Tensor, scale: Tensor, group: int) -> Tensor:
    """Return the product of float inputs: one fused multiply-add for each column, then one for each group."""
    levels = levels.float()
    columns = levels.shape[1]
    total = x.new_zeros(x.shape[0], levels.shape[0])
    for start in range(0, columns, group or columns):
        part = torch.zeros_like(total)
        for k in range(start, min(start + (group or columns), columns)):
            part = fused_multiply_add(levels[:, k], x[:, k, None], part)
        total = fused_multiply_add(part, scale[:, start // group if group else 0], total)
    return total


def fused_multiply_add(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return `a * b + c` of float32 tensors, rounded once.

    The product is exact in float64. The sum is rounded to odd there (its last bit is set if the sum is not exact), so
    rounding it to float32 afterwards equals one rounding of the exact sum (Boldo and Melquiond, IEEE Trans. Comput. 57,
    2008).
    """
    exact = a.double() * b.double()
    addend = c.double()
    total = exact + addend
    part = total - exact
    error = (exact - (total - part)) + (addend - part)  # Knuth's TwoSum: total + error is the exact sum
    bits = total.view(torch.int64)
    away = torch.where((error > 0) == (total > 0), 1, -1)
    bits = bits + torch.where((error.abs() > 0) & (bits % 2 == 0), away, 0)
    return bits.view(torch.float64).float()


def nested_base(scale: Tensor, multiples: int) -> Tensor:
    """Return the base `[rows, 1]` of each row's two-level scales `[rows, groups]` (`nested_base` in pack.cpp).

    The base is the row's largest scale divided by the smallest integer up to `multiples` that makes every scale an
    integer times the base.
    """
    most = scale.abs().amax(1, keepdim=True)
    base = torch.zeros_like(most)
    for divisor in range(multiples, 0, -1):
        candidate = most / torch.full_like(most, divisor)
        fits = (torch.round(scale / candidate) * candidate == scale).all(1, keepdim=True)
        base = torch.where(fits, candidate, base)
    return base


def _expanded(per_group: Tensor, group: int, columns: int) -> Tensor:
    """Return values per group `[rows, groups]` repeated for each column; other granularities broadcast as they are."""
    return per_group.repeat_interleave(group, dim=1)[:, :columns] if group else per_group[:, :1]
