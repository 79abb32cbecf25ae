"""Forward hooks on the layers of a running block: contexts that collect the inputs and outputs of the block's layers.

A *stack* is one parameter that holds the weight matrices of all experts of a layer, `[experts, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zeropoint.quantization.block_runner import Block
from zeropoint.quantization.module_weights import owner_of, parameter_of
from zeropoint.views import LayerView

InputHook = Callable[[str, torch.Tensor], None]
"""Called with the name of a view and its input `[..., in]`, before the layer runs."""

#: The torch functions with which model code multiplies by an expert's slice of a stacked weight.
PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class _EnoughError(Exception):
    """Raised by a hook to end a block's run early, once the hook has the input it waits for."""


@contextmanager
def input_hooks(block: Block, views: Sequence[LayerView], on_input: InputHook) -> Iterator[None]:
    """While the context is open, call `on_input` whenever a layer of `block` that is in `views` receives an input."""
    handles = []
    stacks: dict[str, torch.Tensor] = {}
    for view in views:
        if view.kind == "expert":
            stacks[view.parameter] = parameter_of(block.module, block.path, view)
        else:
            handles.append(
                owner_of(block.module, block.path, view).register_forward_pre_hook(
                    lambda _m, inputs, name=view.name: on_input(name, inputs[0])
                )
            )
    try:
        with _ExpertHook(stacks, {view.name for view in views}, on_input) if stacks else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _ExpertHook(TorchFunctionMode):
    """Interceptor of products with an expert's slice of a stacked weight: experts have no modules to put hooks on."""

    def __init__(
        self, stacks: Mapping[str, torch.Tensor], views: Collection[str], on_input: InputHook
    ) -> None:
        super().__init__()
        self._on_input = on_input
        self._names = {
            stack[index].data_ptr(): f"{parameter}.{index}"
            for parameter, stack in stacks.items()
            for index in range(len(stack))
            if f"{parameter}.{index}" in views
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call the hook if `func` multiplies by a known expert's weight, and return the result of `func`."""
        if self._names and func in PRODUCTS:
            name = self._names.get(args[1].data_ptr())
            if name is not None:
                self._on_input(name, args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def input_calls(block: Block, views: Sequence[LayerView]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    """Collect `(view name, input)` of every call of a layer in `views` inside the context, in order of execution."""
    calls: list[tuple[str, torch.Tensor]] = []
    with input_hooks(block, views, lambda name, layer_input: calls.append((name, layer_input))):
        yield calls


@contextmanager
def bfloat16_inputs(block: Block, views: Sequence[LayerView]) -> Iterator[dict[str, torch.Tensor]]:
    """Return a dictionary that fills inside the context: view name -> the last input of the view, in bfloat16.

    Callers use these inputs in sums over many tokens only, where the rounding errors average out.
    """
    inputs: dict[str, torch.Tensor] = {}
    with input_hooks(
        block, views, lambda name, layer_input: inputs.__setitem__(name, layer_input.bfloat16())
    ):
        yield inputs


def input_of(block: Block, view: LayerView, run: Callable[[], Any]) -> torch.Tensor:
    """Run the block by calling `run`, stop at the first input of `view`, and return that input."""
    inputs: list[torch.Tensor] = []

    def on_input(_name: str, layer_input: torch.Tensor) -> None:
        """Store the input, and end the run."""
        inputs.append(layer_input)
        raise _EnoughError

    with suppress(_EnoughError), input_hooks(block, [view], on_input):
        run()
    return inputs[0]


@contextmanager
def norm_outputs(module: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Return a dictionary that fills inside the context: path of a norm in `module` -> the norm's last output.

    A norm is a submodule whose parameters, `weight` among them, are all vectors.
    """
    outputs: dict[str, torch.Tensor] = {}

    def store_output(inner: str) -> Callable[..., None]:
        """Return a hook that stores the output of the norm at path `inner`."""
        return lambda _module, _inputs, out: outputs.__setitem__(inner, out)

    handles = []
    for inner, submodule in module.named_modules():
        own = dict(submodule.named_parameters())
        if "weight" in own and all(p.ndim == 1 for p in own.values()):
            handles.append(submodule.register_forward_hook(store_output(inner)))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def module_outputs(module: torch.nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """Collect `(path in module, output)` of each submodule that finishes inside the context, in order."""
    outputs: list[tuple[str, Any]] = []
    handles = [
        submodule.register_forward_hook(lambda _module, _in, out, inner=inner: outputs.append((inner, out)))
        for inner, submodule in module.named_modules()
        if inner
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
