"""Fold scales into a block: out of what makes the input of a group of layers, into their weights.

There is no table of architectures. Layers that are given the same tensor object are a group. What makes their input is
the norm that handed the tensor out, or an earlier layer of the block whose outputs, scaled, scale it (`up_proj` before
`down_proj`, `v_proj` before `o_proj`): which one, and which of its channels each input channel comes from, is seen by
scaling it and running the block. Whatever is folded, the block is run before and after on real inputs, and the fold is
taken back, with a warning, when the outputs differ.

A norm's new weight is rounded to the type it is stored in, and the scale taken from what that leaves: nothing is lost.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import load, part_options, parts
from zeropoint.algorithms._folds import Group
from zeropoint.quantization.hooks import InputHook, norm_outputs, record, stages, tapped
from zeropoint.values.plan import Choice
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

#: Tokens of a group's input that a fold is chosen on, and the batches they are taken from.
SAMPLE, BATCHES = 512, 8

#: A fold may change what a block adds to the hidden states by this part of it, in float32.
TOLERANCE = 1e-4

#: Layers that a refusal lists.
NAMED = 4

Run = Callable[[torch.Tensor], torch.Tensor]
"""The block on one batch of hidden states."""


@dataclass(frozen=True, slots=True)
class Maker:
    """What makes a group's input: module `inner` of the block, a norm that multiplies by its weight (`gain`) or by one
    more than it (`offset gain`), or a linear layer; `source` is as in `Group`."""

    inner: str
    kind: Literal["gain", "offset gain", "linear"]
    source: NDArray[np.intp]


@dataclass(slots=True)
class Folded:
    """What became of a block: scales of its views (`columns`, `rows`), `kept` parameters, and what was refused."""

    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[str, torch.Tensor] = field(default_factory=dict)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    refusals: dict[str, str] = field(default_factory=dict)

    def view(self, view: LayerView) -> LayerView:
        """`view` of the folded weight."""
        if view.name not in self.columns and view.name not in self.rows:
            return view

        def read() -> torch.Tensor:
            values = view.read()
            if (columns := self.columns.get(view.name)) is not None:
                values = values * columns
            if (rows := self.rows.get(view.name)) is not None:
                values = values / rows[:, None]
            return values

        return dataclasses.replace(view, read=read)


def folds(choices: Sequence[Choice]) -> bool:
    """Whether any of these weights is to be folded."""
    return any("fold" in parts(choice.algorithm) for choice in choices)


class Folder:
    """Folds one filled block, `block` with the module path `path`; `dtypes` are those that parameters are stored in."""

    def __init__(
        self,
        block: torch.nn.Module,
        path: str,
        views: Sequence[LayerView],
        choices: Mapping[str, Choice],
        dtypes: Mapping[str, torch.dtype],
        run: Run,
        hidden: Sequence[torch.Tensor],
    ) -> None:
        self._block, self._path, self._run, self._hidden = block, path, run, hidden
        self._views = {view.name: view for view in views}
        self._choices, self._dtypes = choices, dtypes
        self._done = Folded()

    def fold(self) -> Folded:
        """Change the block's parameters, and say how."""
        with full_precision(), norm_outputs(self._block) as self._emitted:
            found = stages(list(self._views.values()), self._observe)
        samples = self._samples([stage.names[0] for stage in found if stage.shared])
        with full_precision():
            for stage in found:
                if stage.shared:
                    self._fold_group(stage.names, samples[stage.names[0]])
                elif folds([self._choices[name] for name in stage.names]):
                    self._refuse(stage.names, "routed copies of a tensor that others are given too")
        return self._done

    def _fold_group(self, names: Sequence[str], inputs: torch.Tensor) -> None:
        choice = self._choices[names[0]]
        name = parts(choice.algorithm).get("fold")
        if any(_wish(self._choices[other]) != _wish(choice) for other in names):
            self._refuse(names, "its layers share an input, but not one fold and format")
            return
        if name is None or choice.scheme is None:
            return
        makers = self._makers(names)
        if not makers:
            self._refuse(names, "nothing that scales makes their input")
            return
        group = Group(tuple(self._weight(n).numpy().copy() for n in names), inputs.numpy(), makers[0].source)
        stats = LayerStats(np.square(group.inputs).sum(axis=0), len(group.inputs))
        made = load(name).fold(
            group, stats, choice.scheme, part_options(choice.algorithm, choice.options)[name]
        )
        logger.info("%s at %s: output error %.4g, was %.4g", name, names[0], made.after, made.before)
        if made.after >= made.before:
            self._refuse(names, f"{name} found no scale that lessens the error of their outputs")
        elif not any(self._apply(names, maker, torch.from_numpy(made.scale)) for maker in makers):
            self._refuse(names, f"folding into {makers[0].inner} would change what the block computes")

    def _makers(self, names: Sequence[str]) -> list[Maker]:
        """What may make the input of a group; folding into it will prove it."""
        given = self._given[names[0]]
        width = given.shape[-1]
        emitter = next((inner for inner, out in self._emitted.items() if out is given), None)
        if emitter is not None:
            return [Maker(emitter, "gain", np.arange(width)), Maker(emitter, "offset gain", np.arange(width))]
        earlier = list(self._given)[: list(self._given).index(names[0])] if len(names) == 1 else []
        for name in reversed(earlier):  # the maker is most often the last of those before
            view = self._views[name]
            if view.expert is None and width % view.shape[0] == 0:
                maker = self._linear_maker(names[0], view, given)
                if maker is not None:
                    return [maker]
        return []

    def _linear_maker(self, name: str, view: LayerView, given: torch.Tensor) -> Maker | None:
        """Scale each output of `view` by its own number, and look for that in the input `given` to `name`."""
        scale = torch.exp2(torch.linspace(-1, 1, view.shape[0]))
        saved = self._saved(view)
        self._scale_rows(view, scale)
        changed = self._look(name)
        self._restore(saved)
        flat, before = changed.reshape(-1, changed.shape[-1]), given.reshape(-1, given.shape[-1])
        rows = before.abs().argmax(dim=0, keepdim=True)  # where a channel says most
        ratio = before.gather(0, rows)[0] / flat.gather(0, rows)[0]
        source = (ratio.log2()[:, None] - scale.log2()[None]).abs().argmin(dim=1)
        if not torch.allclose(ratio, scale[source], rtol=1e-4):
            return None
        return Maker(view.module.removeprefix(f"{self._path}."), "linear", source.numpy())

    def _apply(self, names: Sequence[str], maker: Maker, scale: torch.Tensor) -> bool:
        """Fold `scale` if the block then gives what it gave, and if that is not all 1 in the type of the norm."""
        module = self._block.get_submodule(maker.inner)
        saved = [pair for name in names for pair in self._saved(self._views[name])]
        saved += [(p, p.detach().clone()) for p in module.parameters(recurse=False)]
        rows: torch.Tensor | None = None
        if maker.kind == "linear":
            view = next(v for v in self._views.values() if v.module == f"{self._path}.{maker.inner}")
            rows = torch.ones(view.shape[0]).index_copy(0, torch.from_numpy(maker.source), scale)
            self._scale_rows(view, rows)
        else:
            scale = self._scale_norm(maker, module, scale)
        for name in names:
            self._weight(name).mul_(scale)
        if bool((scale == 1).all()) or not self._same():
            self._restore(saved)
            return False
        for name in names:
            self._done.columns[name] = self._done.columns.get(name, torch.ones_like(scale)) * scale
        if rows is not None:
            self._done.rows[view.name] = self._done.rows.get(view.name, torch.ones_like(rows)) * rows
        for leaf, parameter in module.named_parameters(recurse=False):
            if parameter.ndim == 1:
                self._done.kept[f"{self._path}.{maker.inner}.{leaf}"] = parameter.detach().clone()
        return True

    def _scale_norm(self, maker: Maker, module: torch.nn.Module, scale: torch.Tensor) -> torch.Tensor:
        """Divide a norm by `scale`, as near as its stored type allows; the scale that it then was divided by."""
        weight = module.get_parameter("weight").detach()
        offset = 1.0 if maker.kind == "offset gain" else 0.0
        gain = weight + offset
        stored = (gain / scale - offset).to(self._dtypes[f"{self._path}.{maker.inner}.weight"]).float()
        usable = (gain != 0) & (stored + offset != 0)
        weight.copy_(torch.where(usable, stored, weight))
        scale = torch.where(usable, gain / torch.where(usable, stored + offset, 1.0), 1.0)
        if getattr(module, "bias", None) is not None:
            module.get_parameter("bias").detach().div_(scale)
        return scale

    def _scale_rows(self, view: LayerView, rows: torch.Tensor) -> None:
        """Divide the outputs of a layer, its bias included."""
        self._weight(view.name).div_(rows[:, None])
        bias = getattr(self._block.get_submodule(view.module.removeprefix(f"{self._path}.")), "bias", None)
        if bias is not None:
            bias.detach().div_(rows)

    def _same(self) -> bool:
        """Whether the block still adds the same to its first batch of hidden states."""
        added = self._outputs - self._hidden[0]
        return bool((self._run(self._hidden[0]) - self._outputs).norm() <= TOLERANCE * added.norm())

    def _weight(self, name: str) -> torch.Tensor:
        """A view's weight `[out, in]` in the running block."""
        view = self._views[name]
        owner = self._block.get_submodule(view.module.removeprefix(f"{self._path}."))
        weight = owner.get_parameter(view.parameter.rpartition(".")[2]).detach()
        return weight.t() if view.transposed else weight

    def _saved(self, view: LayerView) -> list[tuple[torch.Tensor, torch.Tensor]]:
        module = self._block.get_submodule(view.module.removeprefix(f"{self._path}."))
        return [(p, p.detach().clone()) for p in module.parameters(recurse=False)]

    def _restore(self, saved: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for parameter, value in saved:
            parameter.detach().copy_(value)

    def _refuse(self, names: Sequence[str], why: str) -> None:
        listed = ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
        self._done.refusals[names[0]] = f"nothing was folded into {listed}: {why}"
        logger.info("%s", self._done.refusals[names[0]])

    def _observe(self, seen: InputHook) -> None:
        self._given: dict[str, torch.Tensor] = {}

        def note(name: str, given: torch.Tensor) -> None:
            self._given.setdefault(name, given)
            seen(name, given)

        with tapped(self._block, list(self._views.values()), self._path, note):
            self._outputs = self._run(self._hidden[0])

    def _look(self, name: str) -> torch.Tensor:
        """What view `name` is given of the first batch now."""
        found: list[torch.Tensor] = []
        with tapped(self._block, [self._views[name]], self._path, lambda _name, given: found.append(given)):
            self._run(self._hidden[0])
        return found[0]

    def _samples(self, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Inputs `[tokens, in]` of some views, evenly spaced over the first batches."""
        batches = self._hidden[:BATCHES]
        found: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        for batch in batches:

            def run(seen: InputHook, batch: torch.Tensor = batch) -> Any:
                with tapped(self._block, list(self._views.values()), self._path, seen):
                    return self._run(batch)

            for name, given in record(names, run).items():
                flat = given.reshape(-1, given.shape[-1])
                found[name].append(flat[:: max(1, len(flat) * len(batches) // SAMPLE)].float())
        return {name: torch.cat(parts) for name, parts in found.items()}


def _wish(choice: Choice) -> tuple[Any, ...]:
    """What the layers of a group must agree on."""
    name = parts(choice.algorithm).get("fold")
    return name, choice.scheme, None if name is None else part_options(choice.algorithm, choice.options)[name]


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products in float32 throughout: what is compared here differs in the last digits."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
