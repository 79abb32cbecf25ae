"""Calibrated quantization of the transformer blocks, in order, on the outputs of the blocks already quantized.

Each block is processed in stages. A stage is the set of layers that share one input, in the order of execution.
A stage's statistics are summed over all calibration tokens; its layers are quantized and written back into the block;
then the next stage is observed. After the last stage `Replay.finish` (replay.py) runs the block once more, without the
submodules that it can skip, and the outputs are the next block's inputs.
If an algorithm needs the `drift` statistic or tunes whole blocks, the float model runs beside the quantized one.

Memory: the weights of one block, the hidden states of all tokens (float32), and what `Replay` keeps: in bfloat16, one
input of all tokens for each submodule that it can skip. If the float model runs too: its hidden states of all tokens,
and in bfloat16 one input of all tokens for each stage that needs `drift`.
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
from zeropoint.quantization.hooks import InputHook, Stage, gather, record
from zeropoint.quantization.layers import Quantized, Quantizer, needs, quantize_views
from zeropoint.quantization.replay import Replay
from zeropoint.quantization.run_checkpoint import States
from zeropoint.quantization.tuning import Tuner, block_loss, tuner_of
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.qtensor import Coded
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView


class CalibratedBlocks:
    """The quantized weights of the transformer blocks; a block is processed when `take` first asks for its weights.

    `tokens` int64 `[windows, length]` are the calibration tokens. `quantizer` turns views, a choice and statistics
    into codes (default: `quantize_views`).
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
        self._runs_float_model = any("drift" in names for names in self._needs.values()) or any(self._tuners)
        self._done = 0  # quantized blocks
        self._hidden: list[torch.Tensor] = []  # the next block's input, one tensor per batch
        self._exact: list[torch.Tensor] = []  # the float model's input of that block; empty if none runs
        self._ready: dict[str, Quantized] = {}  # results that `take` has not returned yet

    def covers(self, name: str) -> bool:
        """Return whether the weight `name` lies in a block and is quantized to integers."""
        return name in self._owner

    def replace(self, name: str, weight: Coded) -> None:
        """Use the quantized embedding `weight`, so that its rounding errors are part of the blocks' inputs.

        Do nothing if `name` is not an embedding, or once the first block has been quantized.
        """
        if name in self._embeddings and not self._done:
            self._replaced[name] = weight

    def take(self, name: str) -> Quantized:
        """Return the quantized weight `name`, and quantize all blocks up to its own first.

        A weight can be taken only once. Raises `KeyError` for a weight that `covers` denies.
        """
        self._run_to(self._owner[name])
        return self._ready.pop(name)

    def folded(self, name: str) -> torch.Tensor | None:
        """Return the new float32 value of the kept parameter `name` if a fold changed the parameter, else None.

        If the parameter lies in a block with a fold, all blocks up to that one are quantized first.
        """
        index = next((i for path, i in self._folds.items() if name.startswith(f"{path}.")), None)
        if index is None:
            return None
        self._run_to(index)
        return self._folded.pop(name, None)

    def states(self) -> States:
        """Return the number of quantized blocks and the hidden states that are the next block's input."""
        if self._done == len(self._model.blocks):
            return States(self._done)
        return States(self._done, self._hidden, self._exact)

    def restore(self, states: States) -> None:
        """Continue a run after its first `states.done` blocks."""
        if not states.hidden:  # no block is quantized yet, or all of them are
            self._done = states.done
            return
        with reduced_precision():
            self._start()  # records the blocks' other arguments (masks, rotary tables), which `states` lacks
        self._done, self._hidden, self._exact = states.done, list(states.hidden), list(states.exact)

    def safe_names(self) -> set[str]:
        """Return the weights after which a run checkpoint can be written.

        After such a weight, in the order of the plan, no block has some of its weights yielded and others not.
        """
        owners = {name: owner for name in self._plan.choices if (owner := self._block_of(name)) is not None}
        remaining, started, complete, safe_names = Counter(owners.values()), set[int](), 0, set[str]()
        for name, owner in owners.items():
            started.add(owner)
            remaining[owner] -= 1
            while complete in started and not remaining[complete]:
                complete += 1
            if len(started) == complete:
                safe_names.add(name)
        return safe_names

    def _block_of(self, name: str) -> int | None:
        """Return the index of the block that holds the parameter or view `name`, or None."""
        return next((i for i, path in enumerate(self._model.blocks) if name.startswith(f"{path}.")), None)

    def _run_to(self, index: int) -> None:
        """Quantize all blocks up to and including block `index`."""
        with reduced_precision():
            if not self._hidden:
                self._start()
            while self._done <= index:
                self._quantize_block(self._done)
                self._done += 1

    def _start(self) -> None:
        """Compute the first block's inputs: the float model's if needed, and those from the quantized embedding."""
        outside = self._model.outside()
        self._model.fill(outside)
        if self._runs_float_model:
            self._exact = self._runner.start()
        for name, weight in self._replaced.items():
            self._model.set(name, torch.from_numpy(weight.dequantize()))
        self._hidden = self._runner.start()
        self._replaced.clear()
        self._model.drop(outside)

    def _quantize_block(self, index: int) -> None:
        """Quantize block `index` stage by stage, tune it if asked, and replace `_hidden` by the block's outputs."""
        path = self._model.blocks[index]
        parameters = self._model.names(f"{path}.")
        self._model.fill(parameters)
        block = self._model.module.get_submodule(path)
        refusals = self._fold(path, index, block) if path in self._folds else {}
        views = {view.name: view for view in self._views[path]}
        window = self._hidden[0][:1]  # enough to find the stages
        replay = Replay(block, path, list(views.values()), partial(self._run, index, block), window)
        drifting = [
            s.names[0] for s in replay.stages if s.shared and any("drift" in self._needs[n] for n in s.names)
        ]
        exact = self._run_exact(replay.observe, drifting)
        for stage in replay.stages:
            # `again` runs the block up to this stage, without the submodules that are quantized already. If this stage
            # is the last of a submodule (`keeps`), its inputs are stored: of that submodule, later runs need only the
            # last layer, applied to the stored inputs.
            statistics = frozenset().union(*(self._needs[name] for name in stage.names))
            stage_inputs: dict[int, torch.Tensor] | None = {} if replay.keeps(stage) else None
            runs = [partial(replay.again, number, hidden) for number, hidden in enumerate(self._hidden)]
            stats = gather(stage, statistics, runs, exact, stage_inputs)
            for names in _same_choice_groups(stage, self._plan):
                results = self._quantize([views[name] for name in names], stats.get(names[0]))
                for name, result in zip(names, results, strict=True):
                    self._ready[name] = result
                    _write_back(block, views[name], path, result.weight)
            if stage_inputs is not None:
                replay.keep(stage, stage_inputs)
        exact.clear()
        for view in views.values():
            # The artifact needs every weight of the plan, even one that the block's forward never used.
            if view.name not in self._ready:
                (self._ready[view.name],) = self._quantize([view], None)
        for name, why in refusals.items():
            self._ready[name] = self._ready[name].with_warning(why)
        if (tuner := self._tuners[index]) is not None:
            self._tune(index, block, tuner)
            replay.forget()  # tuning changed layers that the stored inputs were computed with
        if index + 1 < len(self._model.blocks):
            for number, batch in enumerate(self._hidden):
                self._hidden[number] = replay.finish(number, batch)  # also frees the batch's stored inputs
        self._model.drop(parameters)

    def _run(self, index: int, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return the outputs of block `index` for one batch, with its layers in bfloat16 where the CPU has it."""
        with bfloat16_layers():
            return self._runner.run(index, block, hidden)

    def _quantize(self, views: Sequence[LayerView], stats: LayerStats | None) -> list[Quantized]:
        """Quantize views that have the same choice on the statistics of their input.

        Without statistics (`stats` None), a result whose choice needs statistics carries a warning.
        """
        results = self._quantizer(views, self._plan.choices[views[0].name], stats)
        if stats is not None:
            return results
        return [
            result.with_warning(
                f"{view.name} was rounded with equal importance for all its inputs: no calibration token reached it"
            )
            if self._needs[view.name] and not result.warning
            else result
            for view, result in zip(views, results, strict=True)
        ]

    def _fold(self, path: str, index: int, block: torch.nn.Module) -> dict[str, str]:
        """Fold scales into the block before its first stage.

        Returns a warning for each group of layers that was not folded, by the name of the group's first view.
        """
        run = partial(self._runner.run, index, block)
        folded = Folder(
            block, path, self._views[path], self._plan.choices, self._dtypes, run, self._hidden
        ).fold()
        self._views[path] = [folded.view(view) for view in self._views[path]]
        self._folded.update(folded.kept)
        return folded.refusals

    def _tune(self, index: int, block: torch.nn.Module, tuner: Tuner) -> None:
        """Let `tuner` change the codes of all of the block's layers so that the block's output error falls."""
        path, views = self._model.blocks[index], self._views[self._model.blocks[index]]
        run = partial(self._runner.run_with, index, block)
        loss = block_loss(block, path, views, run, self._hidden, self._exact)
        tuned = tuner.tune(
            {view.name: (view, self._ready[view.name]) for view in views}, loss, len(self._hidden), index
        )
        for view in views:
            self._ready[view.name] = tuned[view.name]
            _write_back(block, view, path, tuned[view.name].weight)

    def _run_exact(
        self, run: Callable[[torch.Tensor, InputHook], torch.Tensor], names: list[str]
    ) -> list[dict[str, torch.Tensor]]:
        """Run the block while it still has its float weights; return the inputs of the views `names` per batch.

        Replaces `_exact`, the float model's hidden states, by the block's outputs.
        """
        inputs: list[dict[str, torch.Tensor]] = []
        for number, batch in enumerate(self._exact):

            def step(on_input: InputHook, number: int = number, batch: torch.Tensor = batch) -> None:
                self._exact[number] = run(batch, on_input)

            inputs.append(record(names, step))
        return inputs


def _same_choice_groups(stage: Stage, plan: Plan) -> list[list[str]]:
    """Return the stage's views in groups that one quantizer call can take: one shared input and equal choices."""
    groups: list[list[str]] = []
    for name in stage.names:
        choice = plan.choices[name]
        for group in groups:
            other = plan.choices[group[0]]
            if stage.shared and _without_reason(other) == _without_reason(choice):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _without_reason(choice: Choice) -> tuple[Any, ...]:
    """Return the scheme, algorithm and options of a choice."""
    return choice.scheme, choice.algorithm, choice.options


def _write_back(block: torch.nn.Module, view: LayerView, path: str, weight: Coded) -> None:
    """Overwrite a view's float weight in the block at `path` with the dequantized `weight`."""
    owner = block.get_submodule(view.module.removeprefix(path).removeprefix("."))
    parameter = getattr(owner, view.parameter.rpartition(".")[2])
    target = parameter if view.expert is None else parameter[view.expert]
    values = torch.from_numpy(weight.dequantize())
    with torch.no_grad():
        target.copy_(values.t() if view.transposed else values)


@contextmanager
def reduced_precision() -> Iterator[None]:
    """Let float32 matrix products inside the context use the CPU's bfloat16 units, with float32 sums.

    On AMX, products are four times faster. The relative error of 1/500 per factor averages out in statistics over
    thousands of tokens.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def bfloat16_layers() -> Iterator[None]:
    """Run linear layers and attention in bfloat16 inside the context, on CPUs that multiply bfloat16 natively.

    Norms, activation functions and hidden states between blocks stay float32. A block of SmolLM2-135M takes 18 ms
    for 1,024 tokens on one core with AMX, and 43 ms with `reduced_precision` alone.
    """
    capabilities = torch.cpu.get_capabilities()
    native = any(capabilities.get(flag, False) for flag in ("amx_bf16", "avx512_bf16", "bf16"))
    # Weights change in place from one run to the next, so autocast must not cache their bfloat16 copies.
    with torch.autocast("cpu", torch.bfloat16, enabled=native, cache_enabled=False):
        yield
