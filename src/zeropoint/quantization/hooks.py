"""Forward hooks on the layers of a running block: the inputs of each layer, and statistics summed over the inputs.

A *stack* is one parameter that holds the weight matrices of all experts of a layer, `[experts, ...]`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

InputHook = Callable[[str, torch.Tensor], None]
"""Called with the name of a view and its input `[..., in]`, before the layer runs."""

#: The torch functions with which model code multiplies by an expert's slice of a stacked weight.
PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class _EnoughError(Exception):
    """Raised by a hook to end a block's run early, once the hook has the input it waits for."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Views (`names`) that can be quantized at the same time, because none of them feeds another one.

    `shared` True: all views take the same input tensor, so one Hessian serves them all. `shared` False: the views are
    experts of one stacked weight, and each expert takes tokens of its own.
    """

    names: tuple[str, ...]
    shared: bool


@contextmanager
def tapped(
    block: torch.nn.Module, views: Sequence[LayerView], path: str, on_input: InputHook
) -> Iterator[None]:
    """Call `on_input` inside the context for each input of one of the `views` of `block`.

    `path` is the module path of `block` in the model.
    """
    handles = []
    stacks: dict[str, torch.Tensor] = {}
    for view in views:
        owner = block.get_submodule(view.module.removeprefix(path).removeprefix("."))
        if view.kind == "expert":
            stacks[view.parameter] = getattr(owner, view.parameter.rpartition(".")[2])
        else:
            handles.append(
                owner.register_forward_pre_hook(lambda _m, inputs, name=view.name: on_input(name, inputs[0]))
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
        if self._names and func in PRODUCTS:
            name = self._names.get(args[1].data_ptr())
            if name is not None:
                self._on_input(name, args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def norm_outputs(block: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Collect the last output of each norm of `block` inside the context, by the norm's path in the block.

    A norm is a module whose parameters, `weight` among them, are all vectors.
    """
    emitted: dict[str, torch.Tensor] = {}

    def note(inner: str) -> Callable[..., None]:
        return lambda _module, _inputs, out: emitted.__setitem__(inner, out)

    handles = []
    for inner, module in block.named_modules():
        own = dict(module.named_parameters())
        if "weight" in own and all(p.ndim == 1 for p in own.values()):
            handles.append(module.register_forward_hook(note(inner)))
    try:
        yield emitted
    finally:
        for handle in handles:
            handle.remove()


def stages(views: Sequence[LayerView], run: Callable[[InputHook], Any]) -> list[Stage]:
    """Return the stages of a block in order of execution; `run` runs the block once with the hook that it is given.

    Views that take the same tensor object form one stage; so do the experts of one stacked weight.
    """
    distinct_inputs: list[torch.Tensor] = []
    names_by_input: dict[str, list[str]] = {}
    stacks = {view.name: view.parameter for view in views if view.kind == "expert"}

    def on_input(name: str, layer_input: torch.Tensor) -> None:
        if name in stacks:
            key = stacks[name]
        else:
            number = next((i for i, other in enumerate(distinct_inputs) if other is layer_input), None)
            if number is None:
                distinct_inputs.append(layer_input)
                number = len(distinct_inputs) - 1
            key = str(number)
        if not any(name in names for names in names_by_input.values()):
            names_by_input.setdefault(key, []).append(name)

    run(on_input)
    for view in views:  # experts to which this run routed no token
        reached = names_by_input.get(view.parameter) if view.name in stacks else None
        if reached is not None and view.name not in reached:
            reached.append(view.name)
    # A numeric key is the number of a shared input; any other key is the name of a stack of experts.
    return [Stage(tuple(names), key.isdigit()) for key, names in names_by_input.items()]


class Sums:
    """Statistics (`needs`: `second_moment`, `hessian`, `drift`) of one layer input, summed batch by batch."""

    def __init__(self, needs: Collection[str]) -> None:
        self._needs = needs
        self._count = 0
        self._totals: dict[str, torch.Tensor] = {}

    def add(self, inputs: torch.Tensor, exact: torch.Tensor | None = None) -> None:
        """Add a batch of inputs `[..., in]`; `exact` is the float model's input for the same tokens.

        Sums are float32, even inside an autocast context.
        """
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self._count += len(flat)
        if "hessian" not in self._needs:  # else `stats` reads it off the diagonal of the Hessian
            self._sum("second_moment", flat.square().sum(0))
        with torch.autocast("cpu", enabled=False):
            if "hessian" in self._needs:
                self._sum_products("hessian", flat, flat)
            if "drift" in self._needs and exact is not None:
                self._sum_products("drift", exact.reshape(flat.shape).float() - flat, flat)

    def _sum_products(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        """Add `left.T @ right` to the total `name`."""
        if name in self._totals:
            self._totals[name].addmm_(left.T, right)  # a quarter faster than a product and a sum
        else:
            self._totals[name] = left.T @ right

    def _sum(self, name: str, value: torch.Tensor) -> None:
        """Add `value` to the total `name`."""
        if name in self._totals:
            self._totals[name] += value
        else:
            self._totals[name] = value

    def stats(self) -> LayerStats | None:
        """Return the sums as `LayerStats`, or None if no token was added."""
        if not self._count:
            return None
        arrays = {name: total.numpy() for name, total in self._totals.items()}
        if "hessian" in arrays:
            arrays["second_moment"] = arrays["hessian"].diagonal().copy()
        return LayerStats(count=self._count, **arrays)


def gather(
    stage: Stage,
    needs: Collection[str],
    runs: Sequence[Callable[[InputHook], Any]],
    exact: Sequence[MutableMapping[str, torch.Tensor]],
    stage_inputs: dict[int, torch.Tensor] | None = None,
) -> dict[str, LayerStats]:
    """Return the statistics of each view of `stage` that at least one token reached.

    `runs` holds one function per batch; the function runs the block with the hook that it is given. `exact` is empty,
    or holds for each batch the float model's inputs by view name (from `record`). To free memory, `gather` removes
    from `exact` the inputs that it has used. If `stage_inputs` is not None, `stage_inputs[i]` becomes the shared input
    of batch i, in bfloat16.
    """
    sums = {name: Sums(needs) for name in (stage.names[:1] if stage.shared else stage.names)}

    def on_input(name: str, inputs: torch.Tensor) -> None:
        if name in sums:
            sums[name].add(inputs)

    for index, run in enumerate(runs):
        if stage.shared:
            exact_inputs = exact[index].pop(stage.names[0], None) if exact else None
            inputs = _first(run, stage.names[0])
            sums[stage.names[0]].add(inputs, None if exact_inputs is None else exact_inputs.float())
            if stage_inputs is not None:
                stage_inputs[index] = inputs.bfloat16()
        else:
            run(on_input)
    stats_by_name = {name: total.stats() for name, total in sums.items()}
    return {
        name: stats
        for name in stage.names
        if (stats := stats_by_name[stage.names[0] if stage.shared else name]) is not None
    }


def record(names: Collection[str], run: Callable[[InputHook], Any]) -> dict[str, torch.Tensor]:
    """Return the inputs of the views `names` in one run.

    The inputs are bfloat16. Callers use them in sums over many tokens only, where the rounding errors average out.
    """
    inputs: dict[str, torch.Tensor] = {}

    def on_input(name: str, layer_input: torch.Tensor) -> None:
        if name in names:
            inputs[name] = layer_input.bfloat16()

    run(on_input)
    return inputs


def _first(run: Callable[[InputHook], Any], name: str) -> torch.Tensor:
    """Return the input of view `name`, and end the run as soon as the input is there."""
    inputs: list[torch.Tensor] = []

    def on_input(other: str, layer_input: torch.Tensor) -> None:
        if other == name:
            inputs.append(layer_input)
            raise _EnoughError

    with suppress(_EnoughError):
        run(on_input)
    return inputs[0]
