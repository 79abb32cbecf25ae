"""Packed weights as torch parameters: read-only tensors over weights in the kernels' layout.

`PackedWeight` is the packed weight; the modules call its kernel on raw addresses. `PackedTensor` is a torch parameter
over a `PackedWeight`, so that other code can count parameters, read shapes and read (dequantized) values.
`PackedModule` is the base class of the modules that hold such parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from zeropoint import kernels
from zeropoint.artifact import layout as layouts
from zeropoint.artifact.layout import Layout
from zeropoint.errors import UnsupportedError, UsageError, ZeropointError
from zeropoint.tensors import to_numpy, to_torch
from zeropoint.values.qtensor import QuantizedTensor


class PackedWeight:
    """One quantized weight `[out, in]`, packed by the first kernel backend that takes its scheme on `device`."""

    def __init__(self, weight: QuantizedTensor, device: str = "cpu") -> None:
        self.scheme, self.device = weight.scheme, device
        self.out_features, self.in_features = weight.shape
        self._backend, self.refusals = kernels.choose(weight.scheme, weight.shape, device)
        self._packed = self._backend.pack(weight)
        self.nbytes: int = self._packed.nbytes
        self.replaced = False

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return `x W^T + bias`, `[..., out]`, for activations `x [..., in]`, in the dtype of `x`.

        The product is computed in integers, everything around it in float32. Differentiable in `x` and `bias`.
        """
        if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
            return _DifferentiableLinear.apply(x, bias, self)  # type: ignore[no-any-return,no-untyped-call]
        return self.product(x, bias)

    def product(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Return `x W^T + bias` without gradients. Raises `UnsupportedError` if `x` is on another device."""
        if x.device.type != self.device:
            raise UnsupportedError(
                f"the integer kernels run on the {self.device.upper()}; the input is on {x.device}"
            )
        rows = x.reshape(-1, self.in_features).to(torch.float32).contiguous()
        out = torch.empty(rows.shape[0], self.out_features, dtype=torch.float32)
        addend = None if bias is None else bias.detach().to(torch.float32).contiguous()
        if rows.shape[0]:
            self._backend.linear_ptr(
                rows.data_ptr(),
                rows.shape[0],
                self._packed,
                0 if addend is None else addend.data_ptr(),
                out.data_ptr(),
                torch.get_num_threads(),
            )
        return out.view(*x.shape[:-1], self.out_features).to(x.dtype)

    def rows(self, ids: Tensor) -> Tensor:
        """Return the dequantized rows `ids` of the weight: float32 `[..., in]` for integer ids `[...]`."""
        flat = self._backend.rows(self._packed, ids.reshape(-1).contiguous().numpy())
        return torch.from_numpy(flat).view(*ids.shape, self.in_features)

    def dequantize(self) -> Tensor:
        """Return the whole dequantized weight, float32 `[out, in]`."""
        return self.rows(torch.arange(self.out_features))

    def unpack(self) -> QuantizedTensor:
        """Return the quantized weight, with exactly the codes, scales and zero_points that were packed."""
        weight: QuantizedTensor = self._backend.unpack(self._packed)
        return weight

    def replace(self, name: str, tensors: Mapping[str, NDArray[Any]]) -> str | None:
        """Replace the weight by the one that `tensors` store under `name` in the artifact's layout.

        Every module that shares this object gets the new weight. Returns an error message if the tensors do not fit,
        otherwise None.
        """
        try:
            weight = layouts.decode(name, self.scheme, tensors)
        except ZeropointError as cause:
            return str(cause)
        if weight.shape != (self.out_features, self.in_features):
            return f"{name} has the shape {weight.shape}, not {(self.out_features, self.in_features)}"
        self._packed = self._backend.pack(weight)
        self.replaced = True
        return None

    def __deepcopy__(self, memo: dict[int, Any]) -> PackedWeight:
        """Return a copy that shares the packed bytes, which are never changed in place."""
        copy = memo[id(self)] = object.__new__(PackedWeight)
        copy.__dict__.update(self.__dict__)
        return copy

    def __reduce__(self) -> tuple[Any, ...]:
        # the packed bytes cannot be pickled, so the unpacked weight is
        return PackedWeight, (self.unpack(), self.device), {"replaced": self.replaced}


class _DifferentiableLinear(torch.autograd.Function):
    """The integer product with gradients for input and bias.

    The gradient of the input is that of a product with the dequantized weight (straight-through estimator). Adapters
    train through frozen quantized layers this way (QLoRA, arXiv:2305.14314).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: PackedWeight) -> Tensor:
        ctx.weight, ctx.bias_dtype = weight, None if bias is None else bias.dtype
        return weight.product(x, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        wants_x, wants_bias, _ = ctx.needs_input_grad
        for_x = grad @ ctx.weight.dequantize().to(grad.dtype) if wants_x else None
        for_bias = grad.flatten(0, -2).sum(0).to(ctx.bias_dtype) if wants_bias else None
        return for_x, for_bias, None


class PackedTensor(Tensor):
    """A float32 tensor over a packed weight, dequantized whenever an operation needs its values.

    The tensor is frozen: writing to it or setting `requires_grad` raises `UsageError`. `transposed`: its shape is
    `[in, out]`.
    """

    packed: PackedWeight
    transposed: bool

    @staticmethod
    def __new__(cls, packed: PackedWeight, transposed: bool = False) -> Self:
        shape = (packed.out_features, packed.in_features)
        tensor = Tensor._make_wrapper_subclass(
            cls, shape[::-1] if transposed else shape, dtype=torch.float32, device=torch.device(packed.device)
        )
        tensor.packed, tensor.transposed = packed, transposed
        return tensor

    @classmethod
    def parameter(cls, packed: PackedWeight, transposed: bool = False) -> nn.Parameter:
        """Return a `PackedTensor` as a module parameter."""
        return nn.Parameter(cls(packed, transposed), requires_grad=False)

    def values_of(self) -> Tensor:
        """Return the dequantized values as a plain float32 tensor."""
        values = self.packed.dequantize()
        return values.t() if self.transposed else values

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
            with torch.inference_mode(False):
                return cls(args[0].packed, args[0].transposed)
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if isinstance(value, cls) and argument.alias_info is not None and argument.alias_info.is_write:
                _refuse_change()

        def plain(value: Any) -> Any:
            return value.values_of() if isinstance(value, cls) else value

        return func(*tree_map(plain, tuple(args)), **tree_map(plain, dict(kwargs or {})))

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        if requires_grad:
            _refuse_change()
        return self

    @property
    def requires_grad(self) -> bool:
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"PackedTensor({tuple(self.shape)}, {self.packed.scheme})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            memo[id(self)] = PackedTensor.parameter(self.packed.__deepcopy__(memo), self.transposed)
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return PackedTensor.parameter, (self.packed, self.transposed)


def _refuse_change() -> NoReturn:
    raise UsageError(
        "a quantized weight is frozen: train adapters on top of it, or change the original model and quantize that"
    )


class PackedModule(nn.Module):
    """A module with packed parameters.

    Its `state_dict` holds packed parameters as the tensors of an artifact (`weight` int8 or `weight_packed`,
    `weight_scale`, ...), and `load_state_dict` reads them in that form.
    """

    def packed_tensors(self) -> dict[str, PackedTensor]:
        """Return the module's packed parameters by name."""
        parameters: dict[str, Any] = self._parameters
        return {name: p for name, p in parameters.items() if isinstance(p, PackedTensor)}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Apply `fn` (a move or cast) to all tensors but the packed ones."""
        with self._hidden():
            return super()._apply(fn, recurse)  # type: ignore[no-untyped-call,no-any-return]

    @contextmanager
    def _hidden(self) -> Iterator[dict[str, PackedTensor]]:
        """Yield the packed parameters, which are removed from the module inside the context."""
        packed = self.packed_tensors()
        self._parameters = {name: p for name, p in self._parameters.items() if name not in packed}
        try:
            yield packed
        finally:
            self._parameters = {**packed, **self._parameters}  # type: ignore[dict-item]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        with self._hidden() as packed:
            super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in packed.items():
            for key, array in layouts.encode(prefix + name, tensor.packed.unpack(), Layout()):
                destination[key] = to_torch(array)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        rest = dict(state_dict)
        with self._hidden() as packed:
            for name, tensor in packed.items():
                keys = layouts.tensor_names(prefix + name, tensor.packed.scheme, Layout())
                tensors = {key: to_numpy(rest.pop(key)) for key in keys if key in rest}
                missing_keys.extend(key for key in keys if key not in tensors)
                problem = tensor.packed.replace(prefix + name, tensors) if len(tensors) == len(keys) else None
                if problem is not None:
                    error_msgs.append(problem)
            super()._load_from_state_dict(
                rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )


def packed_weights(model: nn.Module) -> Iterator[PackedWeight]:
    """Yield each packed weight of a model once, even if several parameters share it."""
    ids: set[int] = set()
    for parameter in model.parameters():
        if isinstance(parameter, PackedTensor) and id(parameter.packed) not in ids:
            ids.add(id(parameter.packed))
            yield parameter.packed


def weights_bytes(model: nn.Module, *, buffers: bool = True) -> int:
    """Return the bytes of all distinct weights in memory; packed weights count in their packed size."""
    total = sum(weight.nbytes for weight in packed_weights(model))
    sizes: dict[int, int] = {}
    for tensor in (*model.parameters(), *(model.buffers() if buffers else ())):
        if not isinstance(tensor, PackedTensor):
            sizes[tensor.data_ptr() or id(tensor)] = tensor.numel() * tensor.element_size()
    return total + sum(sizes.values())
