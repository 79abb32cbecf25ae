"""Captures of a stage's inputs: statistics summed over all calibration tokens, while the block runs batch by batch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from zeropoint.quantization.block_runner import Block
from zeropoint.quantization.hooks import bfloat16_inputs, input_hooks, input_of
from zeropoint.quantization.product_precision import reduced_products_pay
from zeropoint.quantization.stages import Stage, StoredTensors, skipping
from zeropoint.values.arrays import Floats
from zeropoint.values.stats import LayerStats
from zeropoint.views import LayerView

#: The number of strips of a Hessian, and the fewest rows of a strip. On one core of a Zen 3, four strips take 0.67 of
#: the time of the whole product, and have 0.63 of its elements.
STRIPS, MIN_STRIP = 4, 128

FloatInputs = list[dict[str, torch.Tensor]]
"""For each batch, the float model's inputs of some layers, by view name, in bfloat16."""


class Captured(NamedTuple):
    """The statistics of a stage's views, and the stored tensors with which later runs skip submodules.

    `stats` holds only views that at least one token reached.
    """

    stats: dict[str, LayerStats]
    stored: list[StoredTensors]


def run_float_block(
    block: Block, views: Sequence[LayerView], hidden: list[torch.Tensor]
) -> tuple[list[torch.Tensor], FloatInputs]:
    """Return the block's outputs for the float model's hidden states, and the inputs of `views`, batch by batch.

    The block must still hold its float weights. The list `hidden` becomes the outputs, so that no batch is in memory
    twice.
    """
    inputs: FloatInputs = []
    for batch in range(len(hidden)):
        with bfloat16_inputs(block, views) as batch_inputs:
            hidden[batch] = block.run_in_bfloat16(hidden[batch])
        inputs.append(batch_inputs)
    return hidden, inputs


def capture_stage(
    block: Block,
    stage: Stage,
    needs: Collection[str],
    hidden: Sequence[torch.Tensor],
    float_inputs: FloatInputs,
    stored: Sequence[StoredTensors],
) -> Captured:
    """Run the block up to `stage` on each batch of `hidden`, and return what the stage's layers received.

    `needs` are the names of the statistics. `float_inputs` is empty, or holds for each batch the float model's inputs
    by view name, for the drift; inputs that have been used are removed, which frees their memory. `stored` are the
    stored tensors of earlier stages.
    """
    if not stage.shared:
        return Captured(_expert_statistics(block, stage, needs, hidden, stored), [])
    first = stage.views[0]
    sums = Sums(needs)
    batches: list[torch.Tensor] = []
    for batch, states in enumerate(hidden):
        exact = float_inputs[batch].pop(first.name, None) if float_inputs else None
        with skipping(stored, batch):
            inputs = input_of(block, first, partial(block.run_in_bfloat16, states))
        sums.add(inputs, None if exact is None else exact.float())
        if stage.skips:
            batches.append(inputs.bfloat16())
    stats = sums.stats()
    return Captured(
        {} if stats is None else dict.fromkeys(stage.names, stats),
        [StoredTensors(skip, batches) for skip in stage.skips],
    )


def _expert_statistics(
    block: Block,
    stage: Stage,
    needs: Collection[str],
    hidden: Sequence[torch.Tensor],
    stored: Sequence[StoredTensors],
) -> dict[str, LayerStats]:
    """Return the statistics of each expert of `stage` that received at least one token, by view name."""
    sums = {name: Sums(needs) for name in stage.names}
    for batch, states in enumerate(hidden):
        with (
            skipping(stored, batch),
            input_hooks(block, stage.views, lambda name, inputs: sums[name].add(inputs)),
        ):
            block.run_in_bfloat16(states)
    return {name: stats for name, total in sums.items() if (stats := total.stats()) is not None}


class Sums:
    """Statistics (`needs`: `second_moment`, `hessian`, `drift`) of one layer input, summed batch by batch.

    The Hessian is symmetric, so it is summed in strips: each strip is a range of rows, without the columns left of the
    range.
    """

    def __init__(self, needs: Collection[str]) -> None:
        self._needs = needs
        self._count = 0
        self._totals: dict[str, torch.Tensor] = {}
        self._strips: list[torch.Tensor] = []  # none before the first batch

    def add(self, inputs: torch.Tensor, exact: torch.Tensor | None = None) -> None:
        """Add a batch of inputs `[..., in]`; `exact` is the float model's input for the same tokens.

        Sums are float32, even inside an autocast context.
        """
        flat = inputs.reshape(-1, inputs.shape[-1]).float()
        self._count += len(flat)
        if "hessian" not in self._needs:  # with a Hessian, the second moment is its diagonal
            moment = flat.square().sum(0)
            self._totals["second_moment"] = self._totals.get("second_moment", 0.0) + moment
        with torch.autocast("cpu", enabled=False):
            if "hessian" in self._needs:
                self._add_strips(flat)
            if "drift" in self._needs and exact is not None:
                drift = exact.reshape(flat.shape).float() - flat
                self._totals["drift"] = _add_product(self._totals.get("drift"), drift, flat)

    def _add_strips(self, flat: torch.Tensor) -> None:
        """Add `flat.T @ flat` to the strips."""
        bounds = _strips(flat.shape[1])
        totals: Sequence[torch.Tensor | None] = self._strips or [None] * len(bounds)
        self._strips = [
            _add_product(total, flat[:, start:end], flat[:, start:])
            for total, (start, end) in zip(totals, bounds, strict=True)
        ]

    def stats(self) -> LayerStats | None:
        """Return the sums as `LayerStats`, or None if no token was added. Frees the strips: call it once."""
        if not self._count:
            return None
        arrays = {name: total.numpy() for name, total in self._totals.items()}
        if "hessian" in self._needs:
            arrays["hessian"] = self._hessian()
            arrays["second_moment"] = arrays["hessian"].diagonal().copy()
        return LayerStats(count=self._count, **arrays)

    def _hessian(self) -> Floats:
        """Return the whole Hessian `[in, in]`.

        Each strip is freed once it is copied, because a layer with experts has one Hessian per expert in memory.
        """
        width = self._strips[0].shape[1]
        hessian = np.empty((width, width), np.float32)
        for start, end in _strips(width):
            strip = self._strips.pop(0).numpy()
            hessian[start:end, start:] = strip
            hessian[start:, start:end] = strip.T
        return hessian


def _strips(width: int) -> list[tuple[int, int]]:
    """Return the range of rows `(start, end)` of each strip of a Hessian `[width, width]`."""
    # With bfloat16 products there is one strip: for a narrower strip, torch would first copy both factors.
    rows = width if reduced_products_pay() else max(MIN_STRIP, -(-width // STRIPS))
    return [(start, min(start + rows, width)) for start in range(0, width, rows)]


def _add_product(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return `total + left.T @ right`, computed in place if there is a total."""
    # `addmm_` is a quarter faster than a product and a sum.
    return left.T @ right if total is None else total.addmm_(left.T, right)
