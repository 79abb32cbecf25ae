"""Fake quantization of one weight: float parameters whose forward pass has the values that an artifact will store.

A `FakeQuantizer` is the trainable form of a `QuantizedTensor`. Gradients ignore rounding (straight-through estimator,
Bengio et al., arXiv:1308.3432); those of scales and zero points are those of learned step sizes (LSQ, Esser et al.,
arXiv:1902.08153; LSQ+, Bhalgat et al., arXiv:2004.09576):

    q = clamp(round(w / s) + z, qmin, qmax),   w' = (q - z) * s

                    q not clamped            q clamped
    dw' / dw        1                        0
    dw' / ds        round(w / s) - w / s     q - z
    dw' / dz        0                        -s

`s` and `z` are rounded to the values that the artifact stores. The levels reach from `(qmin - z) * s` to
`(qmax - z) * s`, so training `s` and `z` also learns where weights are clipped.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from zeropoint.errors import SchemeError
from zeropoint.reference.rounding import EMPTY_SCALE, SMALLEST_SCALE
from zeropoint.training import engine_product
from zeropoint.values.arrays import Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Activation, Scheme

Trainable = Literal["full", "lora", "scales"]
"""What is trained of a weight: the weight itself, a low-rank update of it, or its scales alone (codes stay)."""

TRAINABLE: tuple[Trainable, ...] = ("full", "lora", "scales")

#: How far, in steps of the scale, a latent weight may start from the value of its code. Beyond 0.5 it would round to
#: another code than the one it starts from.
START_OFFSET = 0.4

_TORCH_SCALES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class FakeQuantizer(nn.Module):
    """The trainable form of a quantized weight `[out, in]`.

    - `weight`: latent float weight; with trainable "scales" there is none, and `codes` (int8) stay as they are;
    - `scale`, `zero_point`: float32 of `scheme.scale_shape`; `zero_point` is None if the scheme is symmetric;
    - `base`: with two-level scales, the fixed base of each row, of which every scale is an integer multiple;
    - `lora_a`, `lora_b`: with trainable "lora", the update `lora_b @ lora_a` of the latent weight, which stays fixed.

    With `exact`, products are the engine's bit for bit (`engine_product.py`). Without it, they are products of floats
    with the same values, which differ from the engine's in the order of summation alone.
    """

    weight: nn.Parameter | None
    codes: Tensor | None
    base: Tensor | None
    zero_point: nn.Parameter | None
    lora_a: nn.Parameter | None
    lora_b: nn.Parameter | None

    def __init__(
        self,
        start: QuantizedTensor,
        float_weight: Floats | None = None,
        *,
        trainable: Trainable = "full",
        rank: int = 16,
        exact: bool = False,
        seed: int = 0,
    ) -> None:
        """Start from a quantized weight. The first forward pass has exactly its values.

        A latent weight starts at the value of its code. With `float_weight`, it is moved towards the float weight by at
        most `START_OFFSET` steps.
        """
        super().__init__()
        self.scheme, self.shape, self.exact = start.scheme, start.shape, exact
        scale = torch.from_numpy(start.scale.copy())
        self.scale = nn.Parameter(scale)
        self.zero_point = None
        if start.zero_point is not None:
            self.zero_point = nn.Parameter(torch.from_numpy(start.zero_point.astype(np.float32)))
        nested = start.scheme.scale_dtype == "nested"
        self.register_buffer("base", storable_base(scale, start.scheme.max_multiple) if nested else None)
        codes = torch.from_numpy(start.codes.copy()) if trainable == "scales" else None
        self.register_buffer("codes", codes)
        self.weight = self.lora_a = self.lora_b = None
        if trainable == "scales":
            return
        latent = _latent(start, float_weight)
        self.weight = nn.Parameter(latent, requires_grad=trainable == "full")
        if trainable == "lora":
            rows, columns = start.shape
            generator = torch.Generator().manual_seed(seed)
            self.lora_a = nn.Parameter(torch.randn(rank, columns, generator=generator) / rank)
            self.lora_b = nn.Parameter(torch.zeros(rows, rank))

    # -- the values that an artifact would store --------------------------------------------------

    def stored_scale(self) -> Tensor:
        """Return the scales as an artifact stores them; the gradient passes unchanged."""
        with torch.no_grad():
            rounded = round_scale(self.scale, self.scheme, self.base)
        return _straight_through(self.scale, rounded)

    def stored_zero_point(self) -> Tensor | None:
        """Return the zero points as an artifact stores them; the gradient passes unchanged."""
        if self.zero_point is None:
            return None
        rounded = self.zero_point.detach().round().clamp(self.scheme.qmin, self.scheme.qmax)
        return _straight_through(self.zero_point, rounded)

    def stored_codes(self) -> Tensor:
        """Return the codes, int8 `[out, in]`."""
        if self.codes is not None:
            return self.codes
        with torch.no_grad():
            latent = self.latent()
            scale, zero = self.stored_scale(), self.stored_zero_point()
            return quantize(latent, scale, zero, self.scheme).to(torch.int8)

    def tensor(self) -> QuantizedTensor:
        """Return the quantized weight whose values the forward pass has."""
        zero = self.stored_zero_point()
        return QuantizedTensor(
            self.scheme,
            self.stored_codes().cpu().numpy().copy(),
            self.stored_scale().detach().cpu().numpy().copy(),
            None if zero is None else zero.detach().cpu().numpy().astype(np.int8),
        )

    # -- the forward pass -------------------------------------------------------------------------

    def latent(self) -> Tensor:
        """Return the latent weight, with the low-rank update."""
        assert self.weight is not None
        if self.lora_a is None or self.lora_b is None:
            return self.weight
        return self.weight + self.lora_b @ self.lora_a

    def forward(self) -> Tensor:
        """Return the dequantized weight, float32 `[out, in]`, differentiable in all trained values."""
        return self._dequantized(self.stored_scale(), self.stored_zero_point(), None)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the dequantized rows `ids` `[...]` of the weight, float32 `[..., in]`: an embedding's lookup."""
        scale, zero, flat = self.stored_scale(), self.stored_zero_point(), ids.reshape(-1)
        if self.scheme.granularity != "tensor":
            scale, zero = scale[flat], None if zero is None else zero[flat]
        return self._dequantized(scale, zero, flat).view(*ids.shape, self.shape[1])

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return `x @ weight.T + bias`, `[..., out]`, for an input `[..., in]` that is quantized as the scheme says."""
        flat = x.reshape(-1, self.shape[1]).float()
        values = flat if self.scheme.activation is None else fake_quantize_input(flat, self.scheme.activation)
        y = nn.functional.linear(values, self(), bias)
        if self.exact:
            with torch.no_grad():
                zero = self.stored_zero_point()
                parts = self.stored_codes(), self.stored_scale(), zero, self.scheme, bias
                engine = engine_product.product(flat, *parts)
            y = _straight_through(y, engine)
        return y.view(*x.shape[:-1], self.shape[0]).to(x.dtype)

    def _dequantized(self, scale: Tensor, zero: Tensor | None, ids: Tensor | None) -> Tensor:
        """Return the dequantized rows `ids` (None: all); `scale` and `zero` are already those of the rows."""
        if self.codes is not None:
            codes = self.codes if ids is None else self.codes[ids]
            levels = codes.float()
            if zero is not None:
                levels = levels - expand(zero, self.scheme, self.shape[1])
            return levels * expand(scale, self.scheme, self.shape[1])
        latent = self.latent()
        latent = latent if ids is None else nn.functional.embedding(ids, latent)
        result: Tensor = _FakeQuantize.apply(latent, scale, zero, self.scheme)  # type: ignore[no-untyped-call]
        return result

    def extra_repr(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}, {self.scheme}, exact={self.exact}"


def _latent(start: QuantizedTensor, float_weight: Floats | None) -> Tensor:
    """Return the latent weight from which training starts: the dequantized one, moved towards the float weight."""
    center = torch.from_numpy(start.dequantize())
    if float_weight is None:
        return center
    reach = START_OFFSET * expand(torch.from_numpy(start.scale), start.scheme, start.shape[1]).abs()
    return center + (torch.from_numpy(float_weight) - center).clamp(-reach, reach)


def quantize(weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: Scheme) -> Tensor:
    """Return the codes, as floats: `clamp(round(w / s) + z)`, the rounding of `zeropoint.reference.rounding`."""
    codes = torch.round(weight / expand(scale, scheme, weight.shape[1]))
    if zero_point is not None:
        codes = codes + expand(zero_point, scheme, weight.shape[1])
    return codes.clamp(scheme.qmin, scheme.qmax)


def round_scale(scale: Tensor, scheme: Scheme, base: Tensor | None) -> Tensor:
    """Return scales rounded to the nearest ones that an artifact of the scheme stores.

    With two-level scales these are integer multiples of `base` `[rows, 1]`. For other types see
    `zeropoint.reference.rounding.round_scale`; too large values become the largest of the type.
    """
    if base is not None:
        multiple = (scale.abs() / base.abs()).round().clamp(1, scheme.max_multiple)
        return torch.copysign(multiple * base.abs(), scale)
    dtype = _TORCH_SCALES[scheme.scale_dtype]
    most = torch.finfo(dtype).max
    rounded = scale.clamp(-most, most).to(dtype).float()
    smallest = torch.tensor(SMALLEST_SCALE[scheme.scale_dtype], device=scale.device)
    rounded = torch.where(rounded.abs() < smallest, torch.copysign(smallest, rounded), rounded)
    return torch.where(scale == 0, EMPTY_SCALE, rounded)


def storable_base(scale: Tensor, multiples: int) -> Tensor:
    """Return each row's smallest base `[rows, 1]` that fits; `multiples` is the largest multiple.

    A base fits if all scales of the row are integer multiples of it, and bfloat16 holds all its multiples exactly.
    Raises `SchemeError` if no base fits.
    """
    most = scale.abs().amax(1, keepdim=True)
    base = torch.zeros_like(most)
    for divisor in range(1, multiples + 1):
        candidate = most / torch.full_like(most, divisor)
        fits = (torch.round(scale / candidate) * candidate == scale).all(1, keepdim=True)
        # A base is an odd integer b times a power of two. `multiples` (15 or 7) is odd, so `multiples * b` is odd, and
        # bfloat16 holds the largest multiple only if `multiples * b` < 2^8. Then all smaller multiples of b fit, too.
        for value in (candidate, candidate * multiples):
            fits = fits & (value.bfloat16().float() == value)
        base = torch.where(fits, candidate, base)
    if bool((base == 0).any()):
        raise SchemeError(
            "the two-level scales of a row are not integer multiples of one base, or bfloat16 does not hold the base's "
            "multiples exactly"
        )
    return base


def expand(per_group: Tensor, scheme: Scheme, columns: int) -> Tensor:
    """Repeat values per group `[rows, groups]` to `[rows, columns]`; other granularities broadcast as they are."""
    if scheme.granularity != "group":
        return per_group
    return per_group.repeat_interleave(scheme.group_size, dim=1)[:, :columns]


def sum_groups(values: Tensor, scheme: Scheme) -> Tensor:
    """Return the sums of `[rows, columns]` over each group, `[rows, groups]`: the adjoint of `expand`."""
    if scheme.granularity == "tensor":
        return values.sum().view(1, 1)
    if scheme.granularity == "channel":
        return values.sum(1, keepdim=True)
    padded = nn.functional.pad(values, (0, -values.shape[1] % scheme.group_size))
    return padded.view(values.shape[0], -1, scheme.group_size).sum(2)


class _FakeQuantize(torch.autograd.Function):
    """`w'` of the module docstring. Saves only its arguments for the backward pass."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, scale: Tensor, zero_point: Tensor | None, scheme: Scheme) -> Tensor:
        ctx.scheme = scheme
        ctx.save_for_backward(weight, scale, zero_point)
        codes = quantize(weight, scale, zero_point, scheme)
        if zero_point is not None:
            codes = codes - expand(zero_point, scheme, weight.shape[1])
        return codes * expand(scale, scheme, weight.shape[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), scheme = grads, ctx.scheme
        weight, scale, zero_point = ctx.saved_tensors
        columns = weight.shape[1]
        ratio = weight / expand(scale, scheme, columns)
        steps = torch.round(ratio)  # codes minus zero points, before clamping
        zero = 0 if zero_point is None else expand(zero_point, scheme, columns)
        clamped = (steps + zero).clamp(scheme.qmin, scheme.qmax) - zero
        inside = clamped == steps
        wants_weight, wants_scale, wants_zero, _ = ctx.needs_input_grad
        by_weight = grad * inside if wants_weight else None
        by_scale = by_zero = None
        if wants_scale:
            by_scale = sum_groups(grad * torch.where(inside, steps - ratio, clamped), scheme)
        if wants_zero:
            by_zero = -sum_groups(grad * ~inside, scheme) * scale
        return by_weight, by_scale, by_zero, None


class _StraightThrough(torch.autograd.Function):
    """The value of one tensor with the gradient of another."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def _straight_through(source: Tensor, value: Tensor) -> Tensor:
    """Return `value`; its gradient goes to `source`, as if the two were equal."""
    result: Tensor = _StraightThrough.apply(source, value)  # type: ignore[no-untyped-call]
    return result


def fake_quantize_input(x: Tensor, activation: Activation) -> Tensor:
    """Return an input `[m, in]` with the values of its codes times scales; the gradient passes unchanged."""
    with torch.no_grad():
        codes, scale = engine_product.quantize_input(x, activation)
        size = activation.group_size or x.shape[1]
        values = codes * scale.repeat_interleave(size, dim=1)[:, : x.shape[1]]
    return _straight_through(x, values)
