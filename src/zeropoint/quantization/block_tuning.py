"""Joint tuning of all layers of one transformer block, by the plan's `quantize_block` algorithm."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zeropoint.algorithms import load, part_options, parts
from zeropoint.algorithms.rounding import Layer, Loss, Tuned, relative_distance, relative_sizes
from zeropoint.errors import UsageError
from zeropoint.quantization.block_runner import Block
from zeropoint.quantization.layers import Quantized, measure
from zeropoint.quantization.module_weights import as_parameters
from zeropoint.values.plan import Choice
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tuner:
    """A `quantize_block` algorithm, `name`, with its options."""

    name: str
    options: Any


def tuner_of(choices: Sequence[Choice]) -> Tuner | None:
    """Return the tuner of a block whose layers have these choices, or None. Raises `UsageError` if they differ."""
    tuners = []
    for choice in choices:
        name = parts(choice.algorithm).get("quantize_block")
        tuner = None if name is None else Tuner(name, part_options(choice.algorithm, choice.options)[name])
        if tuner not in tuners:
            tuners.append(tuner)
    if len(tuners) > 1:
        raise UsageError("the layers of one block are tuned together: give them the same tuning in the plan")
    return tuners[0] if tuners else None


def tune_block(
    tuner: Tuner,
    block: Block,
    views: Sequence[LayerView],
    layers: Mapping[str, Quantized],
    hidden: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
) -> dict[str, Quantized]:
    """Tune the `layers` (by view name) of one block together, and return them in the order of `views`.

    The tuner lowers the distance of the block's output for `hidden[i]` from the float block's output `exact[i]`. If
    tuning finds nothing better, the layers are returned unchanged, with a warning on the first one.
    """
    tuned: Tuned = load(tuner.name).quantize_block(
        {view.name: Layer(view.read(), layers[view.name].tensor()) for view in views},
        _output_distance(block, views, hidden, exact),
        len(hidden),
        tuner.options,
        block.number,  # the seed
    )
    logger.info(
        "block %d: %s changed the output error from %.5g to %.5g",
        block.number,
        tuner.name,
        tuned.before,
        tuned.after,
    )
    if tuned.after < tuned.before:
        return {view.name: _with_weight(layers[view.name], view, tuned.weights[view.name]) for view in views}
    first = views[0].name
    warning = f"{tuner.name} found nothing better for the block of {first} than what it started from"
    logger.warning("%s", warning)
    unchanged = {view.name: layers[view.name] for view in views}
    return unchanged | {first: unchanged[first].with_warning(warning)}


def _with_weight(layer: Quantized, view: LayerView, weight: QuantizedTensor) -> Quantized:
    """Return a layer's result with another quantized weight, its error, and the same warning."""
    error = measure(view.name, view.read().numpy(), weight, str(weight.scheme))
    return Quantized(weight, error, layer.warning)


def _output_distance(
    block: Block, views: Sequence[LayerView], hidden: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]
) -> Loss:
    """Return a loss function: the distance of the block's output for `hidden[i]` from the float output `exact[i]`."""
    sizes = relative_sizes(exact)

    def loss(weights: Mapping[str, torch.Tensor], number: int) -> torch.Tensor:
        """Return the distance for batch `number`, with weights `[out, in]` by view name."""
        parameters = as_parameters(block.module, block.path, views, weights)
        return relative_distance(block.run_with(parameters, hidden[number]), exact[number], sizes)

    return loss
