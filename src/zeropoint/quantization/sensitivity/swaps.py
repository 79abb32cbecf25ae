"""The exact score: the KL divergence of the float model with one group replaced by its quantized form."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from zeropoint.quantization.sensitivity.errors import Perturbation, fake_quantize
from zeropoint.quantization.sensitivity.model import FloatModel
from zeropoint.values.sensitivity import Cost, Estimate, Group


class Swaps:
    """Measurement of single groups on `tokens` `[windows, length]`; keeps the float model's log probabilities."""

    def __init__(self, model: FloatModel, tokens: torch.Tensor) -> None:
        self._model = model
        self._tokens = tokens
        self._exact = [self._log_probabilities(index) for index in range(len(tokens))]

    def divergence(self, group: Group, changed: Mapping[str, Perturbation]) -> Estimate | None:
        """Return the KL divergence from the float model in nats per token, with only `group` quantized.

        Returns None for experts with 8-bit inputs: experts have no modules, so no hook can round their inputs.
        """
        if any(
            changed[n].activation and not self._model.modules_of(self._model.views[n]) for n in group.weights
        ):
            return None
        with self._swapped(group, changed):
            divergences = []
            for index, exact in enumerate(self._exact):
                other = self._log_probabilities(index)
                divergences.append(float((exact.exp() * (exact - other)).sum(-1).double().mean()))
        return Estimate.of([max(value, 0.0) for value in divergences])

    def _log_probabilities(self, index: int) -> torch.Tensor:
        """Return the log probabilities `[length, vocabulary]` of window `index`."""
        with torch.no_grad():
            return torch.log_softmax(self._model.logits(self._tokens[index : index + 1])[0].float(), -1)

    @contextmanager
    def _swapped(self, group: Group, changed: Mapping[str, Perturbation]) -> Iterator[None]:
        """Quantize the weights and inputs of `group` inside the context."""
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
    """Return `count` group names spread evenly over `costs` (most sensitive first), both ends included."""
    if count >= len(costs):
        return [cost.group for cost in costs]
    places = {round(i * (len(costs) - 1) / max(count - 1, 1)) for i in range(count)}
    return [costs[place].group for place in sorted(places)]


def _rounding(change: Perturbation) -> Callable[..., tuple[torch.Tensor, ...] | None]:
    """Return a forward pre-hook that rounds a module's input; token ids stay as they are."""

    def before(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
        """Return the module's arguments with the first one rounded, or None to leave them as they are."""
        if change.activation is None or not inputs[0].is_floating_point():
            return None
        return (fake_quantize(inputs[0], change.activation), *inputs[1:])

    return before
