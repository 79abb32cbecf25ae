"""Torch modules that run on the integer kernels: linear layers, embeddings and stacked experts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from zeropoint.errors import UnsupportedError
from zeropoint.runtime.torch_engine.packed import PackedModule, PackedTensor, PackedWeight


class QuantLinear(PackedModule):
    """Quantized replacement of `nn.Linear` and transformers' `Conv1D`; maps `[..., in]` to `[..., out]`.

    `transposed`: the parameter `weight` reports the shape `[in, out]`, like that of `Conv1D`.
    """

    def __init__(self, weight: PackedWeight, bias: Tensor | None = None, *, transposed: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = weight.in_features, weight.out_features
        self.weight = PackedTensor.parameter(weight, transposed)
        self.bias = None if bias is None else nn.Parameter(bias.float(), requires_grad=False)

    @property
    def packed(self) -> PackedWeight:
        return self.weight.packed  # type: ignore[attr-defined,no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.packed.linear(x, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.packed.scheme}, bias={self.bias is not None}"


class QuantEmbedding(PackedModule, nn.Embedding):
    """Quantized replacement of `nn.Embedding` and, through `extend_class`, of its subclasses.

    Only the rows looked up are dequantized. A tied head shares the packed weight.
    """

    @property
    def packed(self) -> PackedWeight:
        return self.weight.packed  # type: ignore[attr-defined,no-any-return]

    def forward(self, input: Tensor) -> Tensor:
        return self.packed.rows(input)

    def extra_repr(self) -> str:
        return f"{self.packed.out_features}, {self.packed.in_features}, {self.packed.scheme}"


def extend_class(module: nn.Module, base: type[nn.Module], replacement: type[nn.Module]) -> None:
    """Replace the behaviour of `base` in `module` by that of `replacement`, a subclass of `base`.

    If the module's class is a subclass of `base`, the new class has `replacement` between the two in the method
    resolution order. Gemma's scaled embedding, `super().forward(ids) * scale`, then scales the output of `replacement`.
    """
    module.__class__ = _extended(type(module), base, replacement)  # type: ignore[arg-type]


@cache
def _extended(cls: Any, base: Any, replacement: Any) -> Any:
    """Return the class that `extend_class` gives to a module of class `cls`."""
    if cls is base:
        return replacement

    def reduce(self: nn.Module, protocol: Any) -> tuple[Any, ...]:
        return _restore, (cls, base, replacement), self.__dict__

    return type(f"{replacement.__name__}{cls.__name__}", (cls, replacement), {"__reduce_ex__": reduce})


def _restore(cls: Any, base: Any, replacement: Any) -> Any:
    """Return an empty object of the extended class, which pickle and deepcopy then fill."""
    extended = _extended(cls, base, replacement)
    return extended.__new__(extended)


def quantize_embedding_(module: nn.Embedding, weight: PackedWeight) -> None:
    """Turn an embedding into a `QuantEmbedding` in place; the behaviour of a subclass of `nn.Embedding` stays."""
    extend_class(module, nn.Embedding, QuantEmbedding)
    module.weight = PackedTensor.parameter(weight)


class Product(Protocol):
    """A weight that inputs are multiplied by: a `PackedWeight`, or a trained weight."""

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor: ...


class ExpertWeight:
    """The weight of one expert, as used in `F.linear(x, experts[i])` or `x @ experts[i]`.

    It is not a tensor but an object with `__torch_function__`. Any other operation raises `UnsupportedError`.
    """

    def __init__(self, packed: Product, *, transposed: bool) -> None:
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
            raise UnsupportedError(
                "this model multiplies by a transposed expert weight, which the integer kernels do not cover: "
                "keep the experts (--keep '*experts*')"
            )
        return self.packed.linear(x, None)


class ExpertStack(PackedModule):
    """Quantized replacement of a stacked 3-D expert parameter; indexing returns the weight of one expert.

    Its parameters are named by expert number, as in an artifact: `...experts.down_proj.3`.
    """

    def __init__(self, experts: Sequence[PackedWeight], *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        for index, expert in enumerate(experts):
            self.register_parameter(str(index), PackedTensor.parameter(expert))

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def __len__(self) -> int:
        return len(self._parameters)

    def __getitem__(self, index: Tensor | int) -> ExpertWeight:
        tensor = self._parameters[str(int(index))]
        return ExpertWeight(tensor.packed, transposed=self.transposed)  # type: ignore[union-attr]
