"""Observe what the layers of a running block are given, and sum it up."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

Seen = Callable[[str, torch.Tensor], None]
"""Told the name of a view and its input, before the layer runs."""

PRODUCTS = (torch.nn.functional.linear, torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__)


class _EnoughError(Exception):
    """Ends a block's run: what was wanted has been seen."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Views that can be quantized at once: none of them changes another's input.

    `shared`: all are given the same tensor, and have one Hessian. Experts of one stack are not.
    """

    names: tuple[str, ...]
    shared: bool


@contextmanager
def tapped(block: torch.nn.Module, views: Sequence[LayerView], path: str, seen: Seen) -> Iterator[None]:
    """Call `seen` whenever one of the views of `block`, whose module path is `path`, is given an input."""
    handles = []
    stacks: dict[str, torch.Tensor] = {}
    for view in views:
        owner = block.get_submodule(view.module.removeprefix(path).removeprefix("."))
        if view.kind == "expert":
            stacks[view.parameter] = getattr(owner, view.parameter.rpartition(".")[2])
        else:
            handles.append(
                owner.register_forward_pre_hook(lambda _m, inputs, name=view.name: seen(name, inputs[0]))
            )
    try:
        with _ExpertHook(stacks, {view.name for view in views}, seen) if stacks else nullcontext():
            yield
    finally:
        for handle in handles:
            handle.remove()


class _ExpertHook(TorchFunctionMode):
    """Experts have no module of their own: their inputs are seen where a slice of their stack is multiplied."""

    def __init__(self, stacks: Mapping[str, torch.Tensor], wanted: Collection[str], seen: Seen) -> None:
        super().__init__()
        self._seen = seen
        self._names = {
            stack[index].data_ptr(): f"{parameter}.{index}"
            for parameter, stack in stacks.items()
            for index in range(len(stack))
            if f"{parameter}.{index}" in wanted
        }

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._names and func in PRODUCTS:
            name = self._names.get(args[1].data_ptr())
            if name is not None:
                self._seen(name, args[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def norm_outputs(block: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Within, what each norm of a running block hands out: a module all of whose parameters are vectors."""
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


def stages(views: Sequence[LayerView], run: Callable[[Seen], Any]) -> list[Stage]:
    """The order in which a block's views are given their inputs, found by `run`ning it once."""
    inputs: list[torch.Tensor] = []
    found: dict[str, list[str]] = {}
    stacks = {view.name: view.parameter for view in views if view.kind == "expert"}

    def seen(name: str, given: torch.Tensor) -> None:
        if name in stacks:
            key = stacks[name]
        else:
            known = next((i for i, other in enumerate(inputs) if other is given), None)
            if known is None:
                inputs.append(given)
                known = len(inputs) - 1
            key = str(known)
        if not any(name in names for names in found.values()):
            found.setdefault(key, []).append(name)

    run(seen)
    for view in views:  # experts that the first batch did not reach
        if view.name in stacks and stacks[view.name] in found and view.name not in found[view.parameter]:
            found[view.parameter].append(view.name)
    return [Stage(tuple(names), key.isdigit()) for key, names in found.items()]


class Sums:
    """The statistics of one input, gathered batch by batch."""

    def __init__(self, needs: Collection[str]) -> None:
        self._needs = needs
        self._count = 0
        self._totals: dict[str, torch.Tensor] = {}

    def add(self, given: torch.Tensor, exact: torch.Tensor | None = None) -> None:
        """Inputs `[..., in]`; `exact` is what the float model has in their place. Sums are float32 wherever it runs."""
        flat = given.reshape(-1, given.shape[-1]).float()
        self._count += len(flat)
        if "hessian" not in self._needs:  # whose diagonal it is
            self._sum("second_moment", flat.square().sum(0))
        with torch.autocast("cpu", enabled=False):
            if "hessian" in self._needs:
                self._sum_products("hessian", flat, flat)
            if "drift" in self._needs and exact is not None:
                self._sum_products("drift", exact.reshape(flat.shape).float() - flat, flat)

    def _sum_products(self, name: str, left: torch.Tensor, right: torch.Tensor) -> None:
        if name in self._totals:
            self._totals[name].addmm_(left.T, right)  # a quarter faster than making the product first
        else:
            self._totals[name] = left.T @ right

    def _sum(self, name: str, value: torch.Tensor) -> None:
        if name in self._totals:
            self._totals[name] += value
        else:
            self._totals[name] = value

    def stats(self) -> LayerStats | None:
        """None when nothing was seen."""
        if not self._count:
            return None
        arrays = {name: total.numpy() for name, total in self._totals.items()}
        if "hessian" in arrays:
            arrays["second_moment"] = arrays["hessian"].diagonal().copy()
        return LayerStats(count=self._count, **arrays)


def gather(
    stage: Stage,
    needs: Collection[str],
    runs: Sequence[Callable[[Seen], Any]],
    exact: Sequence[MutableMapping[str, torch.Tensor]],
    kept: dict[int, torch.Tensor] | None = None,
) -> dict[str, LayerStats]:
    """Statistics of a stage's views from one run per batch, with what `record` kept of the same batches, if anything.

    A view that no token reached is left out. What was recorded for the stage is dropped on the way. `kept` takes
    the input of a stage that shares one, batch by batch, in bfloat16.
    """
    sums = {name: Sums(needs) for name in (stage.names[:1] if stage.shared else stage.names)}

    def seen(name: str, given: torch.Tensor) -> None:
        if name in sums:
            sums[name].add(given)

    for index, run in enumerate(runs):
        if stage.shared:
            recorded = exact[index].pop(stage.names[0], None) if exact else None
            given = _first(run, stage.names[0])
            sums[stage.names[0]].add(given, None if recorded is None else recorded.float())
            if kept is not None:
                kept[index] = given.bfloat16()
        else:
            run(seen)
    found = {name: total.stats() for name, total in sums.items()}
    return {
        name: stats
        for name in stage.names
        if (stats := found[stage.names[0] if stage.shared else name]) is not None
    }


def record(names: Collection[str], run: Callable[[Seen], Any]) -> dict[str, torch.Tensor]:
    """The inputs of the views `names` in one run, in bfloat16: only sums over thousands of them are asked for."""
    kept: dict[str, torch.Tensor] = {}

    def seen(name: str, given: torch.Tensor) -> None:
        if name in names:
            kept[name] = given.bfloat16()

    run(seen)
    return kept


def _first(run: Callable[[Seen], Any], name: str) -> torch.Tensor:
    """What view `name` is given; the run ends there."""
    caught: list[torch.Tensor] = []

    def seen(other: str, given: torch.Tensor) -> None:
        if other == name:
            caught.append(given)
            raise _EnoughError

    with suppress(_EnoughError):
        run(seen)
    return caught[0]
