"""Torch modules over the integer kernels: linear, embedding and stacked expert weights.

A quantized weight is a packed kernel object held by the module, never a `torch.Tensor` subclass:
the module's forward calls the kernel on raw addresses and everything around it stays plain torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zeropoint import kernels
from zeropoint.errors import UnsupportedError
from zeropoint.qtensor import QuantizedTensor


class PackedWeight:
    """One weight `[out, in]` packed by the first kernel backend that takes its scheme."""

    def __init__(self, weight: QuantizedTensor) -> None:
        self.scheme = weight.scheme
        self.out_features, self.in_features = weight.shape
        self._backend, self.refusals = kernels.choose(weight.scheme, weight.shape)
        self._packed = self._backend.pack(weight)
        self.nbytes: int = self._packed.nbytes

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x [..., in]` of any float dtype -> `[..., out]` of the same dtype; computed in float32
        around the integer product."""
        if x.device.type != "cpu":
            raise UnsupportedError(f"the integer kernels run on the CPU; the input is on {x.device}")
        rows = x.reshape(-1, self.in_features).to(torch.float32).contiguous()
        out = torch.empty(rows.shape[0], self.out_features, dtype=torch.float32)
        if rows.shape[0]:
            self._backend.linear_ptr(
                rows.data_ptr(),
                rows.shape[0],
                self._packed,
                0 if bias is None else bias.data_ptr(),
                out.data_ptr(),
                torch.get_num_threads(),
            )
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Dequantized float32 rows for integer `ids` of any shape: `[..., in]`."""
        flat = self._backend.rows(self._packed, ids.reshape(-1).contiguous().numpy())
        return torch.from_numpy(flat).view(*ids.shape, self.in_features)


class _DifferentiableLinear(torch.autograd.Function):
    """The integer product, with the straight-through gradient of its dequantized weight for the
    input (adapters train through frozen quantized layers this way; QLoRA, arXiv:2305.14314)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: PackedWeight) -> Tensor:
        ctx.weight = weight
        return weight.linear(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        weight = ctx.weight.rows(torch.arange(ctx.weight.out_features)).to(grad.dtype)
        return grad @ weight, None, None


class QuantLinear(nn.Module):
    """Drop-in for `nn.Linear` and transformers' `Conv1D` (both map `[..., in]` to `[..., out]`)."""

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.packed = weight
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return _DifferentiableLinear.apply(x, self.bias, self.packed)  # type: ignore[no-any-return,no-untyped-call]
        return self.packed.linear(x, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.packed.scheme}, bias={self.bias is not None}"


class QuantEmbedding(nn.Embedding):
    """Drop-in for `nn.Embedding` and, by `extend_class`, for scaled variants of it.

    Only the rows asked for are dequantized; a tied head shares `packed`.
    """

    packed: PackedWeight

    def forward(self, input: Tensor) -> Tensor:
        # `weight` is a zero-row placeholder that carries the dtype for code that asks for it
        return self.packed.rows(input).to(self.weight.dtype)

    def extra_repr(self) -> str:
        return f"{self.packed.out_features}, {self.packed.in_features}, {self.packed.scheme}"


def extend_class(module: nn.Module, base: type[nn.Module], replacement: type[nn.Module]) -> None:
    """Give `module` the behaviour of `replacement` (a subclass of `base`) where it had `base`'s.

    For a subclass of `base` the new class puts `replacement` between the subclass and `base` in the
    method order, so that Gemma's `super().forward(ids) * scale` still scales what `replacement` returns.
    """
    cls = type(module)
    if cls is base:
        module.__class__ = replacement
    else:
        module.__class__ = type(f"{replacement.__name__}{cls.__name__}", (cls, replacement), {})


def quantize_embedding_(module: nn.Embedding, weight: PackedWeight, dtype: torch.dtype) -> None:
    """Turn an embedding into a `QuantEmbedding` in place, keeping what a subclass adds."""
    extend_class(module, nn.Embedding, QuantEmbedding)
    module.weight = nn.Parameter(torch.empty(0, weight.in_features, dtype=dtype), requires_grad=False)
    module.packed = weight  # type: ignore[assignment]


class ExpertWeight:
    """One expert's weight inside `F.linear(x, experts[i])`: a torch-function object, not a tensor."""

    def __init__(self, packed: PackedWeight, *, transposed: bool) -> None:
        self.packed = packed
        self.transposed = transposed

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Tensor:
        if func is nn.functional.linear and isinstance(args[1], cls) and not args[1].transposed:
            bias = args[2] if len(args) > 2 else (kwargs or {}).get("bias")
            return args[1].packed.linear(args[0], bias)
        if (
            func in (torch.matmul, Tensor.matmul, Tensor.__matmul__)
            and isinstance(args[1], cls)
            and args[1].transposed
        ):
            return args[1].packed.linear(args[0], None)
        name = getattr(func, "__name__", str(func))
        raise UnsupportedError(
            f"this model applies {name} to a quantized expert weight, which the integer kernels do not "
            "cover: keep the experts (--keep '*experts*')"
        )

    def __rmatmul__(self, x: Tensor) -> Tensor:
        if not self.transposed:
            raise UnsupportedError("this model multiplies by a transposed expert weight: keep the experts")
        return self.packed.linear(x, None)


class ExpertStack:
    """Stands where a stacked 3-D expert parameter stood; indexing gives one expert's weight."""

    def __init__(self, experts: Sequence[PackedWeight], *, transposed: bool, dtype: torch.dtype) -> None:
        self.experts = list(experts)
        self.transposed = transposed
        self.dtype = dtype

    def __getitem__(self, index: Tensor | int) -> ExpertWeight:
        return ExpertWeight(self.experts[int(index)], transposed=self.transposed)
