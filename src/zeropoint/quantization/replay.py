"""Repeated runs of one block over its batches, without computing again the submodules that are already quantized.

Each stage needs a run of the block up to the stage's inputs, and a last run gives the block's outputs. Without this
module, every one of these runs would compute the attention again. Some submodules return the output tensor of their
last layer unchanged: attention that of its output projection, an MLP that of its down projection. Once all layers of
such a submodule are quantized, the input of its last layer does not change any more. That input is kept, and later runs
replace the submodule by its last layer, applied to the kept input. The first window shows which submodules qualify; all
others run as usual.

Kept inputs are bfloat16: reduced-precision products would round them to bfloat16 anyway.
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
"""Runs the block on one batch of hidden states `[windows, length, width]` and returns the block's output."""


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


class Replay:
    """The runs of one block, and the `stages` in which its views are quantized.

    `path` is the module path of `block`, `run` runs the block, `first` is a small batch that finds the stages.
    """

    def __init__(
        self, block: torch.nn.Module, path: str, views: Sequence[LayerView], run: Run, first: torch.Tensor
    ) -> None:
        self._block, self._path, self._views, self._run = block, path, views, run
        with _watched(block) as ended:
            self.stages = stages(views, partial(self.observe, first))
        self._skips = _find_skips(block, path, views, self.stages, ended)
        self._kept: dict[str, dict[int, torch.Tensor]] = {}

    def observe(self, hidden: torch.Tensor, on_input: InputHook) -> torch.Tensor:
        """Run the whole block on a batch; call `on_input` with each view's input; return the block's output."""
        with tapped(self._block, self._views, self._path, on_input):
            return self._run(hidden)

    def again(self, number: int, hidden: torch.Tensor, on_input: InputHook) -> torch.Tensor:
        """Run the block on batch `number` like `observe`, but skip the submodules whose last layer's input is kept."""
        with _passed_over([(s, k[number]) for s in self._skips if (k := self._kept.get(s.name))]):
            return self.observe(hidden, on_input)

    def finish(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the block's output for batch `number`, and drop the inputs kept for the batch."""
        out = self.again(number, hidden, _ignore_input)
        for inputs in self._kept.values():
            inputs.pop(number, None)
        return out

    def keep(self, stage: Stage, inputs: dict[int, torch.Tensor]) -> None:
        """Keep the `inputs` of a stage (batch number -> tensor), whose views are quantized by now."""
        self._kept.update({skip.name: inputs for skip in self._skips if skip.name in stage.names})

    def forget(self) -> None:
        """Drop all kept inputs, because earlier layers have changed."""
        self._kept.clear()

    def keeps(self, stage: Stage) -> bool:
        """Return whether the inputs of this stage let a later run skip a submodule."""
        return any(skip.name in stage.names for skip in self._skips)


def _ignore_input(_name: str, _input: torch.Tensor) -> None:
    """Do nothing: the hook of a run whose inputs nobody needs."""


@contextmanager
def _watched(block: torch.nn.Module) -> Iterator[list[tuple[str, Any]]]:
    """Collect `(path in block, output)` of each module that finishes inside the context, in order."""
    outputs: list[tuple[str, Any]] = []
    handles = [
        module.register_forward_hook(lambda _module, _in, out, inner=inner: outputs.append((inner, out)))
        for inner, module in block.named_modules()
        if inner
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _find_skips(
    block: torch.nn.Module,
    path: str,
    views: Sequence[LayerView],
    stages: Sequence[Stage],
    outputs: Sequence[tuple[str, Any]],
) -> list[Skip]:
    """Return the submodules of `block` that `_passed_over` may replace by their last layer.

    Such a submodule returns the output tensor of one of its own layers, that layer is of the submodule's last stage,
    and submodule and layer ran exactly once. `outputs` is the list from `_watched`.
    """
    order = {name: number for number, stage in enumerate(stages) if stage.shared for name in stage.names}
    layers = {
        view.module.removeprefix(path).removeprefix("."): view.name for view in views if view.expert is None
    }
    layer_outputs: list[tuple[torch.Tensor, str]] = []
    skips: dict[str, Skip] = {}
    for inner, out in outputs:
        if inner in layers:
            layer_outputs.append((out, inner))
            continue
        length, result = (len(out), out[0]) if isinstance(out, tuple) else (0, out)
        producer = next((name for output, name in layer_outputs if output is result), None)
        inside = [view.name for view in views if view.module.startswith(f"{path}.{inner}.")]
        if producer is None or not all(name in order for name in inside):
            continue
        if length > 1 and any(other is not None for other in out[1:]):
            continue
        if order[layers[producer]] == max((order[name] for name in inside), default=-1):
            module, layer = block.get_submodule(inner), block.get_submodule(producer)
            skips[inner] = Skip(module, layer, layers[producer], length)
    calls = Counter(inner for inner, _ in outputs)
    names = {name: inner for inner, name in layers.items()}
    return [skip for inner, skip in skips.items() if calls[inner] == calls[names[skip.name]] == 1]


@contextmanager
def _passed_over(skips: Sequence[tuple[Skip, torch.Tensor]]) -> Iterator[None]:
    """Replace, inside the context, each submodule by its last layer applied to the given kept input."""

    def answer(skip: Skip, kept_input: torch.Tensor) -> Callable[..., Any]:
        def forward(*_args: Any, **_kwargs: Any) -> Any:
            out = skip.layer(kept_input.float())
            return (out, *[None] * (skip.length - 1)) if skip.length else out

        return forward

    for skip, kept_input in skips:
        skip.module.forward = answer(skip, kept_input)
    try:
        yield
    finally:
        for skip, _ in skips:
            del skip.module.forward  # restores the class's method
