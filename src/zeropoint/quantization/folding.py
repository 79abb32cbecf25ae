"""Folding of scales into a transformer block, for AWQ and SmoothQuant, without a table of architectures.

A group is the set of layers that take the same tensor object. A fold divides the group's input by a scale per channel
and multiplies the group's weights by the scale. The division happens in the module that produces the input: a norm, or
an earlier linear layer (`up_proj` for `down_proj`, `v_proj` for `o_proj`). To find such a layer, and the output channel
behind each input channel, each output channel of a candidate is divided by a different number and the block is run.
After each fold the block runs on real inputs; if its outputs differ, the fold is undone with a warning.

A norm's new weight is first rounded to its stored type, and the scale is computed from the rounded weight. So the
rounding changes the scale, but not the block's function. If all scales become 1, nothing is folded either.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import load, part_options, parts
from zeropoint.algorithms._folds import Group
from zeropoint.quantization.block_runner import Block
from zeropoint.quantization.hooks import bfloat16_inputs, input_calls, input_of, norm_outputs
from zeropoint.quantization.module_weights import owner_of, weight_of
from zeropoint.quantization.product_precision import TOLERANCE, full_precision
from zeropoint.quantization.stages import group_by_input
from zeropoint.values.plan import Choice
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

#: Tokens of a group's input on which a fold is chosen, and the number of batches from which they are taken.
SAMPLE, BATCHES = 512, 8

#: Number of layers that a refusal lists by name.
NAMED = 4

Failure = Literal["rounded to 1", "output changed"]
"""Why a fold was undone."""


@dataclass(frozen=True, slots=True)
class Producer:
    """The module that produces a group's input.

    - `inner`: the module's path in the block;
    - `kind`: a norm that multiplies by its weight (`gain`) or by its weight plus 1 (`offset gain`), or a linear layer;
    - `source` `[in]`: for each input channel of the group, the output channel of the module that scales it: dividing
      the output channel by a number divides the input channel by the same number.
    """

    inner: str
    kind: Literal["gain", "offset gain", "linear"]
    source: NDArray[np.intp]


@dataclass(slots=True)
class Folded:
    """The folds of one block.

    - `columns`, `rows`: per view, the scale `[in]` that multiplied its columns and the scale `[out]` that divided its
      rows;
    - `kept`: new values of kept vectors (norm weights, biases), float32, by parameter name;
    - `refusals`: per first view of a group, the reason why nothing was folded into the group.
    """

    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def view(self, view: LayerView) -> LayerView:
        """Return a view that reads the folded weight in place of the checkpoint's."""
        if view.name not in self.columns and view.name not in self.rows:
            return view

        def read() -> torch.Tensor:
            """Return the folded weight, computed from the checkpoint's."""
            values = view.read()
            if (columns := self.columns.get(view.name)) is not None:
                values = values * columns
            if (rows := self.rows.get(view.name)) is not None:
                values = values / rows[:, None]
            return values

        return dataclasses.replace(view, read=read)


def folds(choices: Sequence[Choice]) -> bool:
    """Return whether any of these choices names a fold algorithm."""
    return any("fold" in parts(choice.algorithm) for choice in choices)


def fold_block(
    block: Block,
    views: Sequence[LayerView],
    choices: Mapping[str, Choice],
    dtypes: Mapping[str, torch.dtype],
    hidden: Sequence[torch.Tensor],
) -> Folded:
    """Fold scales into the float weights of `block` in place, as the choices say, and return the changes.

    `dtypes` are the stored dtypes of parameters, `hidden` are the block's inputs, batch by batch.
    """
    return _Folder(block, views, choices, dtypes, hidden).fold()


class _Folder:
    """The state of `fold_block`: the folds so far, and tensors of one run on the first batch.

    These are the layers' inputs, the norms' outputs and the block's output.
    """

    def __init__(
        self,
        block: Block,
        views: Sequence[LayerView],
        choices: Mapping[str, Choice],
        dtypes: Mapping[str, torch.dtype],
        hidden: Sequence[torch.Tensor],
    ) -> None:
        self._block, self._path, self._hidden = block, block.path, hidden
        self._views = {view.name: view for view in views}
        self._choices, self._dtypes = choices, dtypes
        self._done = Folded()
        with (
            full_precision(),
            norm_outputs(block.module) as self._emitted,
            input_calls(block, views) as calls,
        ):
            self._outputs = block.run(hidden[0])
        self._stages = group_by_input(views, calls)
        self._inputs: dict[str, torch.Tensor] = {}  # the first input of each view, in order of execution
        for name, layer_input in calls:
            self._inputs.setdefault(name, layer_input)

    def fold(self) -> Folded:
        """Fold scales into the block's parameters in place, and return the changes."""
        samples = self._samples([stage.views[0] for stage in self._stages if stage.shared])
        with full_precision():
            for stage in self._stages:
                if stage.shared:
                    self._fold_group(stage.names, samples[stage.names[0]])
                elif folds([self._choices[name] for name in stage.names]):
                    self._refuse(
                        stage.names, "their inputs are routed copies of a tensor that other layers take too"
                    )
        return self._done

    def _fold_group(self, names: Sequence[str], inputs: torch.Tensor) -> None:
        """Search a scale for one group and fold it, or record the reason why nothing is folded."""
        choice = self._choices[names[0]]
        name = parts(choice.algorithm).get("fold")
        if any(_fold_choice(self._choices[other]) != _fold_choice(choice) for other in names):
            self._refuse(names, "they share an input, but not the same fold algorithm and format")
            return
        if name is None or choice.scheme is None:
            return
        producers = self._producers(names)
        if not producers:
            self._refuse(names, "no norm or linear layer of the block alone produces their input")
            return
        group = Group(
            tuple(self._weight(n).numpy().copy() for n in names), inputs.numpy(), producers[0].source
        )
        stats = LayerStats(np.square(group.inputs).sum(axis=0), len(group.inputs))
        fold = load(name).fold(
            group, stats, choice.scheme, part_options(choice.algorithm, choice.options)[name]
        )
        logger.info("%s at %s: output error %.4g, was %.4g", name, names[0], fold.after, fold.before)
        if fold.after >= fold.before:
            self._refuse(names, f"{name} found no scale that lowers the error of their outputs")
            return
        failures = []
        for producer in producers:
            failure = self._apply(names, producer, torch.from_numpy(fold.scale))
            if failure is None:
                return
            failures.append(failure)
        inner = producers[0].inner
        if "rounded to 1" in failures:
            self._refuse(names, f"the scale rounds to 1 in the stored type of {inner}")
        else:
            self._refuse(names, f"folding into {inner} would change what the block computes")

    def _producers(self, names: Sequence[str]) -> list[Producer]:
        """Return the modules that may produce a group's input; `_apply` tries each."""
        group_input = self._inputs[names[0]]
        width = group_input.shape[-1]
        emitter = next((inner for inner, out in self._emitted.items() if out is group_input), None)
        if emitter is not None:
            return [
                Producer(emitter, "gain", np.arange(width)),
                Producer(emitter, "offset gain", np.arange(width)),
            ]
        earlier = list(self._inputs)[: list(self._inputs).index(names[0])] if len(names) == 1 else []
        for name in reversed(earlier):  # most often the layer just before is the producer
            view = self._views[name]
            if view.expert is None and width % view.shape[0] == 0:
                producer = self._linear_producer(names[0], view, group_input)
                if producer is not None:
                    return [producer]
        return []

    def _linear_producer(self, name: str, view: LayerView, group_input: torch.Tensor) -> Producer | None:
        """Return `view` as the producer of view `name`'s input `group_input`, or None if it is not the producer.

        Divides each output channel of `view` by a different number, and looks for these numbers in the changed input.
        """
        scale = torch.exp2(torch.linspace(-1, 1, view.shape[0]))
        saved = self._saved(view)
        self._scale_rows(view, scale)
        changed_input = input_of(self._block, self._views[name], partial(self._block.run, self._hidden[0]))
        self._restore(saved)
        flat = changed_input.reshape(-1, changed_input.shape[-1])
        before = group_input.reshape(-1, group_input.shape[-1])
        rows = before.abs().argmax(
            dim=0, keepdim=True
        )  # each channel's largest value, for the best precision
        ratio = before.gather(0, rows)[0] / flat.gather(0, rows)[0]
        source = (ratio.log2()[:, None] - scale.log2()[None]).abs().argmin(dim=1)
        if not torch.allclose(ratio, scale[source], rtol=1e-4):
            return None
        return Producer(view.module.removeprefix(f"{self._path}."), "linear", source.numpy())

    def _apply(self, names: Sequence[str], producer: Producer, scale: torch.Tensor) -> Failure | None:
        """Fold `scale` into `producer` and the group, and return None; or undo the fold and return why it failed.

        "rounded to 1": the scale is all 1 after rounding to the norm's type. "output changed": the block's output is no
        longer the same.
        """
        module = self._block.module.get_submodule(producer.inner)
        saved = [pair for name in names for pair in self._saved(self._views[name])]
        saved += [(p, p.detach().clone()) for p in module.parameters(recurse=False)]
        rows: torch.Tensor | None = None
        if producer.kind == "linear":
            view = next(v for v in self._views.values() if v.module == f"{self._path}.{producer.inner}")
            rows = torch.ones(view.shape[0]).index_copy(0, torch.from_numpy(producer.source), scale)
            self._scale_rows(view, rows)
        else:
            scale = self._scale_norm(producer, module, scale)
        for name in names:
            self._weight(name).mul_(scale)
        failure: Failure | None = None
        if bool((scale == 1).all()):
            failure = "rounded to 1"
        elif not self._same():
            failure = "output changed"
        if failure is not None:
            self._restore(saved)
            return failure
        for name in names:
            self._done.columns[name] = self._done.columns.get(name, torch.ones_like(scale)) * scale
        if rows is not None:
            self._done.rows[view.name] = self._done.rows.get(view.name, torch.ones_like(rows)) * rows
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                self._done.kept[f"{self._path}.{producer.inner}.{leaf}"] = parameter.detach().clone()
        return None

    def _scale_norm(self, producer: Producer, module: torch.nn.Module, scale: torch.Tensor) -> torch.Tensor:
        """Divide a norm's weight and bias by `scale`; return the scale after rounding the weight to its stored type."""
        weight = module.get_parameter("weight").detach()
        offset = 1.0 if producer.kind == "offset gain" else 0.0
        gain = weight + offset
        stored = (gain / scale - offset).to(self._dtypes[f"{self._path}.{producer.inner}.weight"]).float()
        usable = (gain != 0) & (stored + offset != 0)
        weight.copy_(torch.where(usable, stored, weight))
        scale = torch.where(usable, gain / torch.where(usable, stored + offset, 1.0), 1.0)
        if getattr(module, "bias", None) is not None:
            module.get_parameter("bias").detach().div_(scale)
        return scale

    def _scale_rows(self, view: LayerView, rows: torch.Tensor) -> None:
        """Divide the rows of a layer's weight, and its bias, by `rows` `[out]`."""
        self._weight(view.name).div_(rows[:, None])
        bias = getattr(owner_of(self._block.module, self._path, view), "bias", None)
        if bias is not None:
            bias.detach().div_(rows)

    def _same(self) -> bool:
        """Return whether the block's output for the first batch changed by at most a fraction `TOLERANCE`.

        The fraction is the norm of the change over the norm of what the block adds to its input.
        """
        added = self._outputs - self._hidden[0]
        return bool((self._block.run(self._hidden[0]) - self._outputs).norm() <= TOLERANCE * added.norm())

    def _weight(self, name: str) -> torch.Tensor:
        """Return a view's weight in the block as `[out, in]` (no copy)."""
        return weight_of(self._block.module, self._path, self._views[name])

    def _saved(self, view: LayerView) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the parameters of a view's module, each with a copy of its value."""
        module = owner_of(self._block.module, self._path, view)
        return [(p, p.detach().clone()) for p in module.parameters(recurse=False)]

    def _restore(self, saved: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Write the saved values back."""
        for parameter, value in saved:
            parameter.detach().copy_(value)

    def _refuse(self, names: Sequence[str], why: str) -> None:
        """Record and log the reason why nothing is folded into a group."""
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        self._done.refusals[names[0]] = f"nothing was folded into {listed}: {why}"
        logger.info("%s", self._done.refusals[names[0]])

    def _samples(self, views: Sequence[LayerView]) -> dict[str, torch.Tensor]:
        """Return about `SAMPLE` inputs `[tokens, in]` of each view, evenly spaced over the first `BATCHES` batches."""
        batches = self._hidden[:BATCHES]
        samples: dict[str, list[torch.Tensor]] = {view.name: [] for view in views}
        for batch in batches:
            with bfloat16_inputs(self._block, views) as inputs_by_name:
                self._block.run(batch)
            for name, inputs in inputs_by_name.items():
                flat = inputs.reshape(-1, inputs.shape[-1])
                samples[name].append(flat[:: max(1, len(flat) * len(batches) // SAMPLE)].float())
        return {name: torch.cat(parts) for name, parts in samples.items()}


def _fold_choice(choice: Choice) -> tuple[Any, ...]:
    """Return the fold algorithm, scheme and fold options, which must be equal for all layers of a group."""
    name = parts(choice.algorithm).get("fold")
    return name, choice.scheme, None if name is None else part_options(choice.algorithm, choice.options)[name]
