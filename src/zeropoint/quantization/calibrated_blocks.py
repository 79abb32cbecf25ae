"""The quantized weights of the transformer blocks by name; a block is quantized when a weight of it is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from zeropoint.checkpoint import Checkpoint
from zeropoint.quantization.block_pipeline import QuantizedBlock, block_plans, first_inputs, quantize_blocks
from zeropoint.quantization.block_runner import BlockRunner, States
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.layers import Quantized, Quantizer, quantize_views
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import Coded


class CalibratedBlocks:
    """The results of `quantize_blocks` that callers have not taken yet, and the hidden states between two blocks.

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
        self._quantizer = quantizer or quantize_views
        self._runner = BlockRunner(FilledModel(checkpoint), tokens)
        self._paths = checkpoint.blocks()
        self._plans = block_plans(checkpoint, plan)
        self._owner = {view.name: i for i, block in enumerate(self._plans) for view in block.views}
        self._names = list(plan.choices)
        self._embeddings = {view.name for view in checkpoint.views()[0] if view.kind == "embedding"}
        self._quantized_embeddings: dict[str, Coded] = {}
        self._states = States()
        # None: the first block's input is not computed yet.
        self._blocks: Iterator[QuantizedBlock] | None = None
        self._layers: dict[str, Quantized] = {}  # results that `take` has not returned yet
        self._folded: dict[str, torch.Tensor] = {}  # results that `folded` has not returned yet

    def covers(self, name: str) -> bool:
        """Return whether the weight `name` lies in a block and is quantized to integers."""
        return name in self._owner

    def replace(self, name: str, weight: Coded) -> None:
        """Use the quantized embedding `weight`, so that its rounding errors are part of the blocks' inputs.

        Do nothing if `name` is not an embedding, or once the first block has been quantized.
        """
        if name in self._embeddings and not self._states.done:
            self._quantized_embeddings[name] = weight

    def take(self, name: str) -> Quantized:
        """Return the quantized weight `name`, after quantizing all blocks up to the one that holds the weight.

        Raises `KeyError` if the weight was taken before, or if `covers` returns False for it.
        """
        self._run_to(self._owner[name])
        return self._layers.pop(name)

    def folded(self, name: str) -> torch.Tensor | None:
        """Return the new float32 value of the kept parameter `name` if a fold changed the parameter, else None.

        If the parameter lies in a block with a fold, all blocks up to that one are quantized first.
        """
        index = self._block_of(name)
        if index is None or not self._plans[index].folds:
            return None
        self._run_to(index)
        return self._folded.pop(name, None)

    def states(self) -> States:
        """Return the number of quantized blocks and the hidden states that are the next block's input."""
        return self._states

    def restore(self, states: States) -> None:
        """Continue a run after its first `states.done` blocks."""
        self._states = states
        if states.hidden:  # else no block is quantized yet, or all of them are
            # The result is not used: the run records the blocks' masks and rotary tables.
            first_inputs(self._runner, {}, needs_float_model=False)
            self._blocks = quantize_blocks(self._runner, self._plans, states, self._quantizer)

    def safe_names(self) -> set[str]:
        """Return the names of the weights after which a run checkpoint can be written.

        Weights are yielded in the order of the plan. After a safe name, each block has yielded all or no weights.
        """
        owners = {name: owner for name in self._names if (owner := self._block_of(name)) is not None}
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
        return next((i for i, path in enumerate(self._paths) if name.startswith(f"{path}.")), None)

    def _run_to(self, index: int) -> None:
        """Quantize all blocks up to and including block `index`."""
        if self._states.done > index:
            return
        if self._blocks is None:
            needs_float_model = any(block.needs_float_model for block in self._plans)
            states = first_inputs(
                self._runner, self._quantized_embeddings, needs_float_model=needs_float_model
            )
            self._quantized_embeddings.clear()
            self._blocks = quantize_blocks(self._runner, self._plans, states, self._quantizer)
        while self._states.done <= index:
            block = next(self._blocks)
            self._states = block.states
            self._layers.update(block.layers)
            self._folded.update(block.kept)
