"""Joint tuning of all layers of one transformer block, by the plan's `quantize_block` algorithm."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from zeropoint.algorithms import load, part_options, parts
from zeropoint.algorithms.rounding import Layer, Loss, Tuned, relative_distance, relative_sizes
from zeropoint.errors import UsageError
from zeropoint.quantization.layers import Quantized, measure
from zeropoint.values.plan import Choice
from zeropoint.views import LayerView

logger = logging.getLogger(__name__)

RunWith = Callable[[dict[str, torch.Tensor], torch.Tensor], torch.Tensor]
"""Runs a block with some parameters replaced, on one batch of hidden states, and returns the block's output."""


@dataclass(frozen=True, slots=True)
class Tuner:
    """A `quantize_block` algorithm, `name`, with its options."""

    name: str
    options: Any

    def tune(
        self, layers: Mapping[str, tuple[LayerView, Quantized]], loss: Loss, batches: int, seed: int
    ) -> dict[str, Quantized]:
        """Tune the layers of one block together and return the results by name.

        `seed` is also the block's number in the log. If tuning finds nothing better, the layers are returned unchanged,
        with a warning on the first one.
        """
        tuned: Tuned = load(self.name).quantize_block(
            {name: Layer(view.read(), quantized.tensor()) for name, (view, quantized) in layers.items()},
            loss,
            batches,
            self.options,
            seed,
        )
        logger.info(
            "block %d: %s changed the output error from %.5g to %.5g",
            seed,
            self.name,
            tuned.before,
            tuned.after,
        )
        if tuned.after < tuned.before:
            return {
                name: Quantized(
                    weight := tuned.weights[name],
                    measure(name, view.read().numpy(), weight, str(weight.scheme)),
                    quantized.warning,
                )
                for name, (view, quantized) in layers.items()
            }
        first = next(iter(layers))
        warning = f"{self.name} found nothing better for the block of {first} than what it started from"
        logger.warning("%s", warning)
        unchanged = {name: quantized for name, (_, quantized) in layers.items()}
        unchanged[first] = unchanged[first].with_warning(warning)
        return unchanged


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


def block_loss(
    block: torch.nn.Module,
    path: str,
    views: Sequence[LayerView],
    run: RunWith,
    hidden: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
) -> Loss:
    """Return a loss function: the distance of the block's output for `hidden[i]` from the float output `exact[i]`."""
    sizes = relative_sizes(exact)

    def loss(weights: Mapping[str, torch.Tensor], number: int) -> torch.Tensor:
        parameters = stored(block, path, views, weights)
        return relative_distance(run(parameters, hidden[number]), exact[number], sizes)

    return loss


def stored(
    block: torch.nn.Module, path: str, views: Sequence[LayerView], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the parameters of `block` (at module path `path`) with the values `weights` `[out, in]` of its views.

    Weights of experts are put into their stacked parameter; transposed views are transposed back.
    """
    plain: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for view in views:
        name = view.parameter.removeprefix(path).removeprefix(".")
        weight = weights[view.name].t() if view.transposed else weights[view.name]
        if view.expert is None:
            plain[name] = weight
        else:
            stacks.setdefault(name, list(block.get_parameter(name)))[view.expert] = weight
    return plain | {name: torch.stack(experts) for name, experts in stacks.items()}
