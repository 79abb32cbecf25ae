"""Quantize the blocks of a model in order, each on the inputs that the quantized blocks before it give.

For each block: its layers are found in the order in which they are given their inputs; those that share an input are
quantized at once, on statistics gathered over all calibration tokens, and replaced by what was made of them before
the next ones are observed. Then the whole quantized block runs, and its outputs are the next block's inputs.
Where an algorithm asks for the `drift`, or tunes whole blocks, the float model runs beside the quantized one.

Memory: the hidden states of all tokens and one block's weights, whatever the model; with drift also the float
model's hidden states and the inputs of one block's layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from zeropoint.checkpoint import Checkpoint
from zeropoint.quantization.blocks import BlockRunner, FilledModel
from zeropoint.quantization.folding import Folder, folds
from zeropoint.quantization.hooks import Seen, Stage, gather, record
from zeropoint.quantization.layers import Quantized, Quantizer, needs, quantize_views
from zeropoint.quantization.replay import Replay
from zeropoint.quantization.run_checkpoint import States
from zeropoint.quantization.tuning import Tuner, block_loss, tuner_of
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Coded
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView


class CalibratedBlocks:
    """Quantizes the weights of the blocks, block by block, as they are asked for in plan order.

    `quantizer` makes them of what was observed, by their choices (None: `quantize_views`).
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        plan: Plan,
        tokens: torch.Tensor,
        quantizer: Quantizer | None = None,
    ) -> None:
        self._plan, self._quantizer = plan, quantizer or quantize_views
        self._model = FilledModel(checkpoint)
        self._runner = BlockRunner(self._model, tokens)
        self._views: dict[str, list[LayerView]] = {path: [] for path in self._model.blocks}
        self._embeddings = {view.name: view for view in checkpoint.views()[0] if view.kind == "embedding"}
        self._replaced: dict[str, Coded] = {}
        for view in checkpoint.views()[0]:
            choice = plan.choices.get(view.name)
            if choice is not None and choice.scheme is not None and not choice.scheme.is_float:
                for path in self._views:
                    if view.module.startswith(f"{path}."):
                        self._views[path].append(view)
        self._owner = {view.name: i for i, path in enumerate(self._views) for view in self._views[path]}
        self._needs = {name: needs(plan.choices[name]) for name in self._owner}
        self._tuners = [
            tuner_of([plan.choices[view.name] for view in views]) for views in self._views.values()
        ]
        self._dtypes = {info.name: info.dtype for info in checkpoint.parameters()}
        self._folds = {
            path: i
            for i, (path, views) in enumerate(self._views.items())
            if folds([plan.choices[view.name] for view in views])
        }
        self._folded: dict[str, torch.Tensor] = {}
        self._beside = any("drift" in wanted for wanted in self._needs.values()) or any(self._tuners)
        self._done = 0
        self._hidden: list[torch.Tensor] = []
        self._exact: list[torch.Tensor] = []
        self._ready: dict[str, Quantized] = {}

    def covers(self, name: str) -> bool:
        return name in self._owner

    def replace(self, name: str, weight: Coded) -> None:
        """What was made of an embedding before the first block: its errors are part of the blocks' inputs."""
        if name in self._embeddings and not self._done:
            self._replaced[name] = weight

    def take(self, name: str) -> Quantized:
        """The weight `name` of a block; runs the blocks up to its own. Each is given once."""
        self._run_to(self._owner[name])
        return self._ready.pop(name)

    def folded(self, name: str) -> torch.Tensor | None:
        """What a parameter that is kept became, float32, where its block is folded; None where it stays as it was."""
        index = next((i for path, i in self._folds.items() if name.startswith(f"{path}.")), None)
        if index is None:
            return None
        self._run_to(index)
        return self._folded.pop(name, None)

    def states(self) -> States:
        """How many blocks are done, and what the next one is given."""
        if self._done == len(self._model.blocks):
            return States(self._done)
        return States(self._done, self._hidden, self._exact)

    def restore(self, states: States) -> None:
        """Go on behind the blocks that were done when `states` was asked for."""
        if not states.hidden:
            self._done = states.done
            return
        with reduced_precision():
            self._start()  # for what the model gives its blocks beside the hidden states
        self._done, self._hidden, self._exact = states.done, list(states.hidden), list(states.exact)

    def ends(self) -> set[str]:
        """The weights of the plan behind which its first blocks are complete and no other one is begun."""
        owners = {name: owner for name in self._plan.choices if (owner := self._block_of(name)) is not None}
        left, begun, complete, found = Counter(owners.values()), set[int](), 0, set[str]()
        for name, owner in owners.items():
            begun.add(owner)
            left[owner] -= 1
            while complete in begun and not left[complete]:
                complete += 1
            if len(begun) == complete:
                found.add(name)
        return found

    def _block_of(self, name: str) -> int | None:
        return next((i for i, path in enumerate(self._model.blocks) if name.startswith(f"{path}.")), None)

    def _run_to(self, index: int) -> None:
        with reduced_precision():
            if not self._hidden:
                self._start()
            while self._done <= index:
                self._quantize_block(self._done)
                self._done += 1

    def _start(self) -> None:
        outside = self._model.outside()
        self._model.fill(outside)
        if self._beside:
            self._exact = self._runner.start()
        for name, weight in self._replaced.items():
            self._model.set(name, torch.from_numpy(weight.dequantize()))
        self._hidden = self._runner.start()
        self._replaced.clear()
        self._model.drop(outside)

    def _quantize_block(self, index: int) -> None:
        path = self._model.blocks[index]
        names = self._model.names(f"{path}.")
        self._model.fill(names)
        block = self._model.module.get_submodule(path)
        refusals = self._fold(path, index, block) if path in self._folds else {}
        views = {view.name: view for view in self._views[path]}
        replay = Replay(
            block, path, list(views.values()), partial(self._run, index, block), self._hidden[0][:1]
        )
        drifting = [
            s.names[0] for s in replay.stages if s.shared and any("drift" in self._needs[n] for n in s.names)
        ]
        exact = self._run_exact(replay.observe, drifting)
        for stage in replay.stages:
            wanted = frozenset().union(*(self._needs[name] for name in stage.names))
            kept: dict[int, torch.Tensor] | None = {} if replay.keeps(stage) else None
            runs = [partial(replay.again, number, hidden) for number, hidden in enumerate(self._hidden)]
            stats = gather(stage, wanted, runs, exact, kept)
            for names_alike in _alike(stage, self._plan):
                first = names_alike[0]
                done = self._quantize([views[name] for name in names_alike], stats.get(first))
                for name, made in zip(names_alike, done, strict=True):
                    self._ready[name] = made
                    _put(block, views[name], path, made.weight)
            if kept is not None:
                replay.keep(stage, kept)
        exact.clear()
        for view in views.values():
            if view.name not in self._ready:  # the model's code never multiplies by it
                (self._ready[view.name],) = self._quantize([view], None)
        for name, why in refusals.items():
            self._ready[name] = self._ready[name].saying(why)
        if (tuner := self._tuners[index]) is not None:
            self._tune(index, block, tuner)
            replay.forget()
        if index + 1 < len(self._model.blocks):
            for number, batch in enumerate(self._hidden):
                self._hidden[number] = replay.finish(number, batch)
        self._model.drop(names)

    def _run(self, index: int, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block on one batch, as it is observed."""
        with bfloat16_layers():
            return self._runner.run(index, block, hidden)

    def _quantize(self, views: Sequence[LayerView], stats: LayerStats | None) -> list[Quantized]:
        """Weights of one choice on what was seen of their input; that nothing was seen is said where it is missed."""
        done = self._quantizer(views, self._plan.choices[views[0].name], stats)
        if stats is not None:
            return done
        return [
            made.saying(
                f"{view.name} was rounded as if its inputs were alike: no calibration token reached it"
            )
            if self._needs[view.name] and not made.warning
            else made
            for view, made in zip(views, done, strict=True)
        ]

    def _fold(self, path: str, index: int, block: torch.nn.Module) -> dict[str, str]:
        """Fold the block before any of it is quantized; what must be said of its layers."""
        run = partial(self._runner.run, index, block)
        done = Folder(
            block, path, self._views[path], self._plan.choices, self._dtypes, run, self._hidden
        ).fold()
        self._views[path] = [done.view(view) for view in self._views[path]]
        self._folded.update(done.kept)
        return done.refusals

    def _tune(self, index: int, block: torch.nn.Module, tuner: Tuner) -> None:
        """Let `tuner` choose the codes of all of the block's layers again, by what the block gives."""
        path, views = self._model.blocks[index], self._views[self._model.blocks[index]]
        run = partial(self._runner.run_with, index, block)
        loss = block_loss(block, path, views, run, self._hidden, self._exact)
        found = tuner.tune(
            {view.name: (view, self._ready[view.name]) for view in views}, loss, len(self._hidden), index
        )
        for view in views:
            self._ready[view.name] = found[view.name]
            _put(block, view, path, found[view.name].weight)

    def _run_exact(
        self, run: Callable[[torch.Tensor, Seen], torch.Tensor], names: list[str]
    ) -> list[dict[str, torch.Tensor]]:
        """Run the block while it still is the float model's; keep the inputs of `names`, batch by batch."""
        kept: list[dict[str, torch.Tensor]] = []
        for number, batch in enumerate(self._exact):

            def step(seen: Seen, number: int = number, batch: torch.Tensor = batch) -> None:
                self._exact[number] = run(batch, seen)

            kept.append(record(names, step))
        return kept


def _alike(stage: Stage, plan: Plan) -> list[list[str]]:
    """The views of a stage that can be quantized as one: given the same tensor, and by the same choice."""
    groups: list[list[str]] = []
    for name in stage.names:
        choice = plan.choices[name]
        for group in groups:
            other = plan.choices[group[0]]
            if stage.shared and _how(other) == _how(choice):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _how(choice: Choice) -> tuple[Any, ...]:
    """A choice without its reason."""
    return choice.scheme, choice.algorithm, choice.options


def _put(block: torch.nn.Module, view: LayerView, path: str, weight: Coded) -> None:
    """Replace a view of a running block's weight by what its codes stand for."""
    owner = block.get_submodule(view.module.removeprefix(path).removeprefix("."))
    parameter = getattr(owner, view.parameter.rpartition(".")[2])
    target = parameter if view.expert is None else parameter[view.expert]
    values = torch.from_numpy(weight.dequantize())
    with torch.no_grad():
        target.copy_(values.t() if view.transposed else values)


@contextmanager
def reduced_precision() -> Iterator[None]:
    """Matrix products of float32 by the processor's bfloat16 units where it has them, summed in float32.

    Four times faster on AMX. A statistic over thousands of tokens does not notice a relative error of 1/500 in each.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def bfloat16_layers() -> Iterator[None]:
    """Layers and attention in bfloat16 on processors that multiply it natively, as most models were trained.

    What is between them, and what the blocks hand on, stays float32. A block of SmolLM2-135M takes 18 ms
    for 1,024 tokens on one core with AMX, and 43 ms with products of reduced precision alone.
    """
    known = torch.cpu.get_capabilities()
    native = any(known.get(flag, False) for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    # Weights change in place from one run to the next: casts of them must not be kept.
    with torch.autocast("cpu", torch.bfloat16, enabled=native, cache_enabled=False):
        yield
