"""The true score: one group of the float model swapped for its quantized form, and the divergence measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from zeropoint.quantization.sensitivity.errors import Perturbation, fake_quantize
from zeropoint.quantization.sensitivity.model import FloatModel
from zeropoint.values.sensitivity import Cost, Estimate, Group


class Swaps:
    """`tokens` `[windows, length]`; the float model's log probabilities of them are kept."""

    def __init__(self, model: FloatModel, tokens: torch.Tensor) -> None:
        self._model = model
        self._tokens = tokens
        self._exact = [self._chances(index) for index in range(len(tokens))]

    def divergence(self, group: Group, changed: Mapping[str, Perturbation]) -> Estimate | None:
        """KL divergence from the float model, nats per token; None for 8-bit inputs of experts, which have no
        module in front of which to round them."""
        if any(
            changed[n].activation and not self._model.modules_of(self._model.views[n]) for n in group.weights
        ):
            return None
        with self._swapped(group, changed):
            found = []
            for index, exact in enumerate(self._exact):
                other = self._chances(index)
                found.append(float((exact.exp() * (exact - other)).sum(-1).double().mean()))
        return Estimate.of([max(value, 0.0) for value in found])

    def _chances(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return torch.log_softmax(self._model.logits(self._tokens[index : index + 1])[0].float(), -1)

    @contextmanager
    def _swapped(self, group: Group, changed: Mapping[str, Perturbation]) -> Iterator[None]:
        handles = []
        weights = {name: self._model.weight(self._model.views[name]) for name in group.weights}
        saved = {name: weight.clone() for name, weight in weights.items()}
        for name, weight in weights.items():
            change = changed[name]
            if change.delta is not None:
                weight += change.delta.float()
            if change.activation is not None:
                hook = _rounding(change)
                modules = self._model.modules_of(self._model.views[name])
                handles += [module.register_forward_pre_hook(hook) for module in modules]
        try:
            yield
        finally:
            for name, weight in weights.items():
                weight.copy_(saved[name])
            for handle in handles:
                handle.remove()


def sample(costs: Sequence[Cost], count: int) -> list[str]:
    """`count` groups spread evenly over the ranking `costs` (most fragile first), both ends included."""
    if count >= len(costs):
        return [cost.group for cost in costs]
    places = {round(i * (len(costs) - 1) / max(count - 1, 1)) for i in range(count)}
    return [costs[place].group for place in sorted(places)]


def _rounding(change: Perturbation) -> Callable[..., tuple[torch.Tensor, ...] | None]:
    def before(_module: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        if change.activation is None or not given[0].is_floating_point():
            return None
        return (fake_quantize(given[0], change.activation), *given[1:])

    return before
