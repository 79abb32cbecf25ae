"""Scores from one forward and one backward pass per window: output error, predicted KL divergence, input statistics.

Labels are drawn from the model's own predictions. The gradient g_t of their log likelihood with respect to a layer's
output at position t then has mean zero, and E[(g_t . e_t)^2] / 2 is, to second order, the KL divergence that an output
error e_t causes (the Fisher information in the direction of the error; Martens, arXiv:1412.1193). This takes one
product with the weight's error per layer and format, and no gradients of weights. Positions are treated as independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from zeropoint.progress import Progress
from zeropoint.quantization.sensitivity.errors import Perturbation
from zeropoint.quantization.sensitivity.model import FloatModel
from zeropoint.values.sensitivity import Cost, Estimate, Group, InputShape


class Scores:
    """Sums over windows of each group's output errors, Fisher products and input moments, per format."""

    def __init__(
        self, model: FloatModel, groups: Sequence[Group], formats: Mapping[str, Mapping[str, Perturbation]]
    ) -> None:
        self._model = model
        self._formats = formats
        self._groups = {group.name: group for group in groups}
        self._owner = {name: group.name for group in groups for name in group.weights}
        self._products: dict[tuple[str, str], torch.Tensor] = {}
        self._errors: dict[tuple[str, str], float] = {}
        self._sizes: dict[str, float] = {}
        self._moments: dict[str, _Moments] = {}
        self._samples: dict[tuple[str, str], list[float]] = {}
        self._weights = {name: model.weight(view) for name, view in model.views.items()}

    def run(self, tokens: torch.Tensor, seed: int, step: Progress) -> None:
        """Add the windows of `tokens` `[windows, length]`; `seed` draws the labels, `step` reports progress."""
        generator = torch.Generator().manual_seed(seed)
        first = self._model.module.get_input_embeddings()
        # All weights are frozen, so the graph for the backward pass must start at the embedding's output.
        handle = first.register_forward_hook(lambda _m, _given, out: out.detach().requires_grad_())
        try:
            for index in range(len(tokens)):
                step("running the float model forward and back", index, len(tokens))
                self._window(tokens[index : index + 1], generator)
        finally:
            handle.remove()

    def _window(self, ids: torch.Tensor, generator: torch.Generator) -> None:
        """Add one window `[1, length]`."""
        self._products.clear()
        reached: set[str] = set()

        def on_product(name: str, inputs: torch.Tensor, out: torch.Tensor) -> None:
            """Add the forward pass, and the backward pass once the gradient of `out` is there."""
            reached.add(self._owner[name])
            inputs = inputs.detach()
            self._add_forward(name, inputs, out.detach())
            out.register_hook(lambda gradient: self._add_backward(name, inputs, gradient))  # type: ignore[no-untyped-call]

        with torch.enable_grad(), self._model.observed(on_product):
            logits = self._model.logits(ids)[0].float()
            log_probabilities = torch.log_softmax(logits, -1)
            labels = torch.multinomial(log_probabilities.detach().exp(), 1, generator=generator)
            log_probabilities.gather(-1, labels).sum().backward()  # type: ignore[no-untyped-call]
        length = ids.shape[1]
        for group in reached:
            for format_name in self._formats:
                product = self._products.get((group, format_name))
                total = 0.0 if product is None else float(product.double().square().sum())
                self._samples.setdefault((group, format_name), []).append(0.5 * total / length)

    def _add_forward(self, name: str, inputs: torch.Tensor, out: torch.Tensor) -> None:
        """Add a product's output size and input moments (forward pass)."""
        group = self._owner[name]
        self._sizes[group] = self._sizes.get(group, 0.0) + float(out.double().square().sum())
        if inputs.is_floating_point() and name == self._groups[group].weights[0]:
            self._moments.setdefault(group, _Moments()).add(inputs.reshape(-1, inputs.shape[-1]))

    def _add_backward(self, name: str, inputs: torch.Tensor, gradient: torch.Tensor) -> None:
        """Add a product's output error, and its product with the output's gradient (backward pass)."""
        group, weight = self._owner[name], self._weights[name]
        for format_name, changed in self._formats.items():
            error = changed[name].output_error(weight, inputs).detach()
            key = (group, format_name)
            self._errors[key] = self._errors.get(key, 0.0) + float(
                error.expand_as(gradient).double().square().sum()
            )
            product = (error * gradient).sum(-1).reshape(-1)
            previous = self._products.get(key)
            if previous is None:
                self._products[key] = product
            elif self._model.views[name].kind == "expert":  # each expert takes tokens of its own
                self._products[key] = torch.cat([previous, product])
            else:
                self._products[key] = previous + product

    def costs(self) -> list[Cost]:
        """Return the cost of each group that a token reached, at each format."""
        return [
            Cost(group, format_name, Estimate.of(samples), self._relative(group, format_name))
            for (group, format_name), samples in self._samples.items()
        ]

    def inputs(self) -> list[InputShape]:
        """Return the input statistics of each group with float inputs."""
        return [moments.shape(group) for group, moments in self._moments.items()]

    def _relative(self, group: str, format_name: str) -> float:
        """Return the relative output error of a group at a format, to six digits."""
        size = self._sizes[group]
        return float(f"{math.sqrt(self._errors.get((group, format_name), 0.0) / size):.6g}") if size else 0.0


class _Moments:
    """Input statistics per channel: the largest magnitude, and float64 sums of second and fourth powers."""

    def __init__(self) -> None:
        self._count = 0
        self._largest = self._second = self._fourth = torch.zeros(())

    def add(self, inputs: torch.Tensor) -> None:
        """Add inputs `[tokens, in]`."""
        values = inputs.double()
        self._count += len(values)
        self._largest = torch.maximum(self._largest, values.abs().amax(0))
        squares = values.square()
        self._second = self._second + squares.sum(0)
        self._fourth = self._fourth + squares.square().sum(0)

    def shape(self, group: str) -> InputShape:
        """Return the statistics as the `InputShape` of `group`."""
        tiny = 1e-30
        second, fourth = self._second / self._count, self._fourth / self._count
        each = fourth / second.square().clamp_min(tiny)
        pooled = fourth.mean() / second.mean().square().clamp_min(tiny)
        ratio = self._largest.max() / self._largest.median().clamp_min(tiny)
        rounded = [float(f"{float(value):.5g}") for value in (ratio, each.median(), pooled)]
        return InputShape(group, rounded[0], rounded[1], rounded[2], int(self._largest.argmax()))
