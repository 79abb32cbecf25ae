"""Scores from one forward and one backward pass per window: output error, predicted divergence, input shape.

For labels drawn from the model itself, the gradient g_t of the log likelihood with respect to a layer's output at
position t has mean zero, and E[(g_t . e_t)^2] / 2 is, to second order, the KL divergence that an output error e_t
causes (the Fisher information in the direction of the error; Martens, arXiv:1412.1193). It costs one product with
the weight's error per layer and format: no gradient of a weight is ever made. Positions are taken as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch

from zeropoint.quantization.sensitivity.errors import Perturbation
from zeropoint.quantization.sensitivity.model import FloatModel
from zeropoint.values.sensitivity import Cost, Estimate, Group, InputShape


class Scores:
    """Sums over windows of what each group's errors do."""

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

    def run(self, tokens: torch.Tensor, seed: int, step: Callable[[str, float, float], None]) -> None:
        """Observe `tokens` `[windows, length]`, a window at a time."""
        generator = torch.Generator().manual_seed(seed)
        first = self._model.module.get_input_embeddings()
        # Frozen weights would leave nothing to differentiate: the graph starts at the embedding's output.
        handle = first.register_forward_hook(lambda _m, _given, out: out.detach().requires_grad_())
        try:
            for index in range(len(tokens)):
                step("running the float model forward and back", index, len(tokens))
                self._window(tokens[index : index + 1], generator)
        finally:
            handle.remove()

    def _window(self, ids: torch.Tensor, generator: torch.Generator) -> None:
        self._products.clear()
        reached: set[str] = set()

        def seen(name: str, given: torch.Tensor, out: torch.Tensor) -> None:
            reached.add(self._owner[name])
            given = given.detach()
            self._look(name, given, out.detach())
            out.register_hook(lambda gradient: self._back(name, given, gradient))  # type: ignore[no-untyped-call]

        with torch.enable_grad(), self._model.observed(seen):
            logits = self._model.logits(ids)[0].float()
            chances = torch.log_softmax(logits, -1)
            labels = torch.multinomial(chances.detach().exp(), 1, generator=generator)
            chances.gather(-1, labels).sum().backward()  # type: ignore[no-untyped-call]
        length = ids.shape[1]
        for group in reached:
            for text in self._formats:
                product = self._products.get((group, text))
                total = 0.0 if product is None else float(product.double().square().sum())
                self._samples.setdefault((group, text), []).append(0.5 * total / length)

    def _look(self, name: str, given: torch.Tensor, out: torch.Tensor) -> None:
        group = self._owner[name]
        self._sizes[group] = self._sizes.get(group, 0.0) + float(out.double().square().sum())
        if given.is_floating_point() and name == self._groups[group].weights[0]:
            self._moments.setdefault(group, _Moments()).add(given.reshape(-1, given.shape[-1]))

    def _back(self, name: str, given: torch.Tensor, gradient: torch.Tensor) -> None:
        group, weight = self._owner[name], self._weights[name]
        for text, changed in self._formats.items():
            error = changed[name].output_error(weight, given).detach()
            key = (group, text)
            self._errors[key] = self._errors.get(key, 0.0) + float(
                error.expand_as(gradient).double().square().sum()
            )
            product = (error * gradient).sum(-1).reshape(-1)
            known = self._products.get(key)
            if known is None:
                self._products[key] = product
            elif self._model.views[name].kind == "expert":  # each sees tokens of its own
                self._products[key] = torch.cat([known, product])
            else:
                self._products[key] = known + product

    def costs(self) -> list[Cost]:
        return [
            Cost(group, text, Estimate.of(samples), self._relative(group, text))
            for (group, text), samples in self._samples.items()
        ]

    def inputs(self) -> list[InputShape]:
        return [moments.shape(group) for group, moments in self._moments.items()]

    def _relative(self, group: str, text: str) -> float:
        size = self._sizes[group]
        return float(f"{math.sqrt(self._errors.get((group, text), 0.0) / size):.6g}") if size else 0.0


class _Moments:
    """Per channel: the largest magnitude, and the sums of second and fourth powers in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._largest = self._second = self._fourth = torch.zeros(())

    def add(self, given: torch.Tensor) -> None:
        values = given.double()
        self._count += len(values)
        self._largest = torch.maximum(self._largest, values.abs().amax(0))
        squares = values.square()
        self._second = self._second + squares.sum(0)
        self._fourth = self._fourth + squares.square().sum(0)

    def shape(self, group: str) -> InputShape:
        tiny = 1e-30
        second, fourth = self._second / self._count, self._fourth / self._count
        each = fourth / second.square().clamp_min(tiny)
        pooled = fourth.mean() / second.mean().square().clamp_min(tiny)
        ratio = self._largest.max() / self._largest.median().clamp_min(tiny)
        rounded = [float(f"{float(value):.5g}") for value in (ratio, each.median(), pooled)]
        return InputShape(group, rounded[0], rounded[1], rounded[2], int(self._largest.argmax()))
