"""Run one block over its batches again and again, and compute nothing twice that no longer changes.

Each stage of a block's layers takes a run up to its own inputs, and the last run gives the block's outputs; all of
them would compute the attention again. But where a submodule hands on the very tensor that its last layer made
(attention that of its output projection, an MLP that of its down projection), and all its layers are quantized, the
input of that layer says all: the submodule is passed over, and only its last layer runs, on the input that was kept.
Which submodules these are is seen on the first window. Whatever does not look so is run as before.

Kept inputs are bfloat16, which is what a product of reduced precision makes of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from zeropoint.quantization.hooks import InputHook, Stage, stages, tapped
from zeropoint.views import LayerView

Run = Callable[[torch.Tensor], torch.Tensor]
"""The block on one batch of hidden states."""


@dataclass(frozen=True, slots=True)
class Skip:
    """A submodule whose output is that of its `layer`, the module of the view `name`.

    `length`: it gives a tuple of so many, the others None; 0: the tensor alone.
    """

    module: torch.nn.Module
    layer: torch.nn.Module
    name: str
    length: int


class Replay:
    """A block, whose module path is `path`, in the stages of its `views`."""

    def __init__(
        self, block: torch.nn.Module, path: str, views: Sequence[LayerView], run: Run, first: torch.Tensor
    ) -> None:
        self._block, self._path, self._views, self._run = block, path, views, run
        with _watched(block) as ended:
            self.stages = stages(views, partial(self.observe, first))
        self._skips = _find_skips(block, path, views, self.stages, ended)
        self._kept: dict[str, dict[int, torch.Tensor]] = {}

    def observe(self, hidden: torch.Tensor, seen: InputHook) -> torch.Tensor:
        """The whole block on a batch; `seen` is told each view's input."""
        with tapped(self._block, self._views, self._path, seen):
            return self._run(hidden)

    def again(self, number: int, hidden: torch.Tensor, seen: InputHook) -> torch.Tensor:
        """Batch `number` once more, without the submodules whose last layer's input was kept."""
        with _passed_over([(s, k[number]) for s in self._skips if (k := self._kept.get(s.name))]):
            return self.observe(hidden, seen)

    def finish(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """The block's output for batch `number`, whose kept inputs are dropped."""
        out = self.again(number, hidden, _look_away)
        for kept in self._kept.values():
            kept.pop(number, None)
        return out

    def keep(self, stage: Stage, inputs: dict[int, torch.Tensor]) -> None:
        """From now on, `stage` is quantized; `inputs` are those of its views, batch by batch."""
        self._kept.update({skip.name: inputs for skip in self._skips if skip.name in stage.names})

    def forget(self) -> None:
        """Nothing kept holds any more: layers before the kept inputs have changed."""
        self._kept.clear()

    def keeps(self, stage: Stage) -> bool:
        """Whether the inputs of this stage are worth keeping."""
        return any(skip.name in stage.names for skip in self._skips)


def _look_away(_name: str, _given: torch.Tensor) -> None:
    """Nothing is to be seen in this run."""


@contextmanager
def _watched(block: torch.nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """Within, the paths in `block` of the modules that ended are noted, with their outputs."""
    ended: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda _module, _in, out, inner=inner: ended.append((inner, out)))
        for inner, module in block.named_modules()
        if inner
    ]
    try:
        yield ended
    finally:
        for handle in handles:
            handle.remove()


def _find_skips(
    block: torch.nn.Module,
    path: str,
    views: Sequence[LayerView],
    found: Sequence[Stage],
    ended: Sequence[tuple[str, Any]],
) -> list[Skip]:
    """The submodules of `block` that ended in one of their own layers, and in none of an earlier stage."""
    order = {name: number for number, stage in enumerate(found) if stage.shared for name in stage.names}
    layers = {
        view.module.removeprefix(path).removeprefix("."): view.name for view in views if view.expert is None
    }
    outputs: list[tuple[torch.Tensor, str]] = []
    skips: dict[str, Skip] = {}
    for inner, out in ended:
        if inner in layers:
            outputs.append((out, inner))
            continue
        length, tensor = (len(out), out[0]) if isinstance(out, tuple) else (0, out)
        last = next((name for made, name in outputs if made is tensor), None)
        inside = [view.name for view in views if view.module.startswith(f"{path}.{inner}.")]
        if last is None or not all(name in order for name in inside):
            continue
        if length > 1 and any(other is not None for other in out[1:]):
            continue
        if order[layers[last]] == max((order[name] for name in inside), default=-1):
            module, layer = block.get_submodule(inner), block.get_submodule(last)
            skips[inner] = Skip(module, layer, layers[last], length)
    calls = Counter(inner for inner, _ in ended)
    names = {name: inner for inner, name in layers.items()}
    return [skip for inner, skip in skips.items() if calls[inner] == calls[names[skip.name]] == 1]


@contextmanager
def _passed_over(skips: Sequence[tuple[Skip, torch.Tensor]]) -> Iterator[None]:
    """Within, each of the modules answers with its layer's output of the input given here."""

    def answer(skip: Skip, kept: torch.Tensor) -> Callable[..., Any]:
        def forward(*_args: Any, **_kwargs: Any) -> Any:
            out = skip.layer(kept.float())
            return (out, *[None] * (skip.length - 1)) if skip.length else out

        return forward

    for skip, kept in skips:
        skip.module.forward = answer(skip, kept)
    try:
        yield
    finally:
        for skip, _ in skips:
            del skip.module.forward  # the class's own again
