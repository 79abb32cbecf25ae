"""The stages of a transformer block, in which its layers are quantized, and the submodules that later runs can skip.

A stage needs a run of the block up to the stage's inputs, and a last run gives the block's outputs. Without skips,
every one of these runs would compute the attention again. Some submodules return the output tensor of their last layer
unchanged: attention that of its output projection, an MLP that of its down projection. Once all layers of such a
submodule are quantized, the input of its last layer does not change any more. That input is stored. The next run
applies the last layer to it and stores the output, which replaces the submodule in all runs after that. One run on a
window of tokens shows which submodules qualify; all others run as usual.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from zeropoint.quantization.block_runner import Block
from zeropoint.quantization.hooks import input_calls, module_outputs
from zeropoint.views import LayerView


@dataclass(frozen=True, slots=True)
class Skip:
    """A submodule whose output is the output of its `layer`, the module of the view `name`.

    `length` 0: the submodule returns that tensor. Else the submodule returns a tuple of `length` items: that tensor,
    then only None.
    """

    module: torch.nn.Module
    layer: torch.nn.Module
    name: str
    length: int


@dataclass(frozen=True, slots=True)
class Stage:
    """Views that can be quantized at the same time, because none of them feeds another one.

    - `shared` True: all views take the same input tensor, so one Hessian serves them all. `shared` False: the views are
      experts of one stacked weight, and each expert takes tokens of its own;
    - `skips`: the submodules that runs can skip after this stage, because one of its layers is their last.
    """

    views: tuple[LayerView, ...]
    shared: bool
    skips: tuple[Skip, ...] = ()

    @property
    def names(self) -> list[str]:
        """Return the view names of the stage's layers."""
        return [view.name for view in self.views]


@dataclass(frozen=True, slots=True)
class StoredInput:
    """The tensors that replace a run of a skip's submodule, one per batch.

    - `inputs`: the input of the skip's layer, in bfloat16 (reduced-precision products would round it anyway); a batch
      is dropped once its output is computed;
    - `outputs`: batch number -> the layer's output, in the dtype in which the layer returned it.
    """

    skip: Skip
    inputs: list[torch.Tensor]
    outputs: dict[int, torch.Tensor] = field(default_factory=dict)

    def output(self, batch: int) -> torch.Tensor:
        """Return the layer's output for a batch. Only the first call computes it."""
        if batch not in self.outputs:
            self.outputs[batch] = self.skip.layer(self.inputs[batch].float())
            self.inputs[batch] = torch.empty(0)
        return self.outputs[batch]

    def drop(self, batch: int) -> None:
        """Free the memory of a batch."""
        self.outputs.pop(batch, None)
        self.inputs[batch] = torch.empty(0)


def group_by_input(views: Sequence[LayerView], calls: Sequence[tuple[str, torch.Tensor]]) -> list[Stage]:
    """Return the stages of a block in order of execution, from the `input_calls` of one run.

    Views that take the same tensor object form one stage; so do the experts of one stacked weight.
    """
    distinct_inputs: list[torch.Tensor] = []
    # Keys: the index of an input in `distinct_inputs`, or the parameter that stacks experts.
    names_by_input: dict[int | str, list[str]] = {}
    stacks = {view.name: view.parameter for view in views if view.kind == "expert"}
    for name, layer_input in calls:
        if name in stacks:
            key: int | str = stacks[name]
        else:
            key = next(
                (i for i, other in enumerate(distinct_inputs) if other is layer_input), len(distinct_inputs)
            )
            if key == len(distinct_inputs):
                distinct_inputs.append(layer_input)
        if not any(name in names for names in names_by_input.values()):
            names_by_input.setdefault(key, []).append(name)
    for view in views:  # experts to which this run routed no token
        reached = names_by_input.get(view.parameter) if view.name in stacks else None
        if reached is not None and view.name not in reached:
            reached.append(view.name)
    by_name = {view.name: view for view in views}
    return [
        Stage(tuple(by_name[name] for name in names), shared=isinstance(key, int))
        for key, names in names_by_input.items()
    ]


def find_stages(block: Block, views: Sequence[LayerView], window: torch.Tensor) -> list[Stage]:
    """Run the block on a small batch, and return its stages in order of execution."""
    with module_outputs(block.module) as outputs, input_calls(block, views) as calls:
        block.run_in_bfloat16(window)
    stages = group_by_input(views, calls)
    skips = _find_skips(block, views, stages, outputs)
    return [
        replace(stage, skips=tuple(skip for skip in skips if skip.name in stage.names)) for stage in stages
    ]


def _find_skips(
    block: Block, views: Sequence[LayerView], stages: Sequence[Stage], outputs: Sequence[tuple[str, Any]]
) -> list[Skip]:
    """Return the submodules of `block` that `skipping` may replace by their last layer.

    Such a submodule returns the output tensor of one of its own layers, that layer is of the submodule's last stage,
    and submodule and layer ran exactly once. `outputs` is the list from `module_outputs`.
    """
    order = {name: number for number, stage in enumerate(stages) if stage.shared for name in stage.names}
    layers = {view.module.removeprefix(f"{block.path}."): view.name for view in views if view.expert is None}
    layer_outputs: list[tuple[torch.Tensor, str]] = []
    skips: dict[str, Skip] = {}
    for inner, out in outputs:
        if inner in layers:
            layer_outputs.append((out, inner))
            continue
        length, result = (len(out), out[0]) if isinstance(out, tuple) else (0, out)
        producer = next((name for output, name in layer_outputs if output is result), None)
        inside = [view.name for view in views if view.module.startswith(f"{block.path}.{inner}.")]
        if producer is None or not all(name in order for name in inside):
            continue
        if length > 1 and any(other is not None for other in out[1:]):
            continue
        if order[layers[producer]] == max((order[name] for name in inside), default=-1):
            module, layer = block.module.get_submodule(inner), block.module.get_submodule(producer)
            skips[inner] = Skip(module, layer, layers[producer], length)
    calls = Counter(inner for inner, _ in outputs)
    names = {name: inner for inner, name in layers.items()}
    return [skip for inner, skip in skips.items() if calls[inner] == calls[names[skip.name]] == 1]


@contextmanager
def skipping(stored_inputs: Sequence[StoredInput], batch: int) -> Iterator[None]:
    """Replace, inside the context, each skip's submodule by the output of its last layer for batch number `batch`."""

    def answer(stored: StoredInput) -> Callable[..., Any]:
        """Return a `forward` that returns the output of the skip's layer."""

        def forward(*_args: Any, **_kwargs: Any) -> Any:
            """Return what the submodule would return."""
            out, length = stored.output(batch), stored.skip.length
            return (out, *[None] * (length - 1)) if length else out

        return forward

    for stored in stored_inputs:
        stored.skip.module.forward = answer(stored)
    try:
        yield
    finally:
        for stored in stored_inputs:
            del stored.skip.module.forward  # restores the class's method
