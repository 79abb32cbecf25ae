"""Tune the layers of one block together, by the algorithm that the plan names for it."""

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
"""A block with these parameters in place of its own, on one batch of hidden states."""


@dataclass(frozen=True, slots=True)
class Tuner:
    """An algorithm for blocks, ready to be carried out."""

    name: str
    options: Any

    def tune(
        self, layers: Mapping[str, tuple[LayerView, Quantized]], loss: Loss, batches: int, seed: int
    ) -> dict[str, Quantized]:
        """What `layers` become. When nothing better is found they stay, and the first one's warning says so."""
        tuned: Tuned = load(self.name).quantize_block(
            {name: Layer(view.read(), made.tensor()) for name, (view, made) in layers.items()},
            loss,
            batches,
            self.options,
            seed,
        )
        logger.info(
            "block %d: %s took the distance from %.5g to %.5g", seed, self.name, tuned.before, tuned.after
        )
        if tuned.after < tuned.before:
            return {
                name: Quantized(
                    weight := tuned.weights[name],
                    measure(name, view.read().numpy(), weight, str(weight.scheme)),
                    made.warning,
                )
                for name, (view, made) in layers.items()
            }
        first = next(iter(layers))
        warning = f"{self.name} found nothing better for the block of {first} than what it started from"
        logger.warning("%s", warning)
        kept = {name: made for name, (_, made) in layers.items()}
        kept[first] = kept[first].with_warning(warning)
        return kept


def tuner_of(choices: Sequence[Choice]) -> Tuner | None:
    """What tunes a block whose layers have these choices. Raises `UsageError` when they do not agree."""
    found = []
    for choice in choices:
        name = parts(choice.algorithm).get("quantize_block")
        tuner = None if name is None else Tuner(name, part_options(choice.algorithm, choice.options)[name])
        if tuner not in found:
            found.append(tuner)
    if len(found) > 1:
        raise UsageError("the layers of one block are tuned together: give them the same tuning in the plan")
    return found[0] if found else None


def block_loss(
    block: torch.nn.Module,
    path: str,
    views: Sequence[LayerView],
    run: RunWith,
    hidden: Sequence[torch.Tensor],
    exact: Sequence[torch.Tensor],
) -> Loss:
    """How far the block at `path`, given `hidden`, is from the float model's outputs `exact`, batch by batch."""
    sizes = relative_sizes(exact)

    def loss(weights: Mapping[str, torch.Tensor], number: int) -> torch.Tensor:
        parameters = stored(block, path, views, weights)
        return relative_distance(run(parameters, hidden[number]), exact[number], sizes)

    return loss


def stored(
    block: torch.nn.Module, path: str, views: Sequence[LayerView], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Views' weights `[out, in]` as the parameters of `block`, at `path`, that hold them; experts take their places."""
    plain: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for view in views:
        name = view.parameter.removeprefix(path).removeprefix(".")
        weight = weights[view.name].t() if view.transposed else weights[view.name]
        if view.expert is None:
            plain[name] = weight
        else:
            stacks.setdefault(name, list(block.get_parameter(name)))[view.expert] = weight
    return plain | {name: torch.stack(held) for name, held in stacks.items()}
