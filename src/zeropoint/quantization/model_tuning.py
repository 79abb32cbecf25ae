"""Tune a whole quantized model beside the float one, by the algorithm that the plan names for it.

Unlike everything before it, this holds the model: twice in float32, and what a backward pass over one window keeps.
`refuse_large` says so before the first weight is read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.func import functional_call

from zeropoint.algorithms import load, part_options, parts
from zeropoint.algorithms.distill import Tuned
from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UsageError
from zeropoint.machine.detect import Machine
from zeropoint.quantization.blocks import FilledModel
from zeropoint.quantization.calibrated import bfloat16_layers, reduced_precision
from zeropoint.quantization.tuning import stored
from zeropoint.reference.rounding import round_scale
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight, expand_groups

logger = logging.getLogger(__name__)

#: What is kept of a block for its backward pass, in numbers of its width for each token: a gated MLP and attention.
KEPT_WIDTHS = 40

#: Tensors of a window's logits that live at once.
LOGITS = 8


@dataclass(frozen=True, slots=True)
class ModelTuner:
    """An algorithm for whole models, ready to be carried out."""

    name: str
    options: Any

    def tune(
        self, checkpoint: Checkpoint, made: Mapping[str, Weight], tokens: torch.Tensor, seed: int
    ) -> tuple[dict[str, Weight], str]:
        """What the weights `made` of a model become, and what must be said of it ("" when all is well)."""
        with reduced_precision():
            twin = Twin(checkpoint, made)
            tuned: Tuned = load(self.name).tune_model(twin, tokens, self.options, seed)
        logger.info("%s took the divergence from %.5g to %.5g", self.name, tuned.before, tuned.after)
        if tuned.after < tuned.before:
            return twin.weights(tuned.values), ""
        warning = f"{self.name} found nothing better than what it started from: no scale or norm was changed"
        logger.warning("%s", warning)
        return dict(made), warning


def model_tuner(plan: Plan) -> ModelTuner | None:
    """What tunes the whole model under this plan. Raises `UsageError` when its choices name different ways."""
    found: list[ModelTuner] = []
    for choice in plan.choices.values():
        name = parts(choice.algorithm).get("tune_model") if choice.scheme is not None else None
        if name is not None:
            tuner = ModelTuner(name, part_options(choice.algorithm, choice.options)[name])
            if tuner not in found:
                found.append(tuner)
    if len(found) > 1:
        raise UsageError("the whole model is tuned at once: give all weights the same tuning in the plan")
    return found[0] if found else None


def refuse_large(
    checkpoint: Checkpoint, tuner: ModelTuner, length: int, machine: Machine | None = None
) -> None:
    """Raise `UsageError` when a model does not fit this machine twice in float32 with a window's gradients."""
    available = (machine or Machine.detect()).ram_available_bytes
    config = checkpoint.config.get_text_config()
    numbers = 2 * sum(info.numel for info in checkpoint.parameters() if info.tied_to is None)
    numbers += length * (
        KEPT_WIDTHS * config.hidden_size * len(checkpoint.blocks()) + LOGITS * config.vocab_size
    )
    if 4 * numbers > available:
        raise UsageError(
            f"{tuner.name} holds the model twice in float32 and needs about {4 * numbers / 1e9:.1f} GB, of which "
            f"this machine has {available / 1e9:.1f} free: leave {tuner.name} out, or use a larger machine"
        )


class Twin:
    """A model in float32 and, with other parameters, the quantized one: a `distill.Student`.

    Free are the vectors that are kept (norms, biases) and the scales of weights whose scales are not nested.
    """

    def __init__(self, checkpoint: Checkpoint, made: Mapping[str, Weight]) -> None:
        self._model = FilledModel(checkpoint)
        self._model.fill(self._model.names(""))
        for path in self._model.blocks:
            block = self._model.module.get_submodule(path)
            block.forward = _in_bfloat16(block.forward)
        self._made = made
        self._ties = {info.name: info.tied_to for info in checkpoint.parameters() if info.tied_to is not None}
        self._views = {view.name: view for view in checkpoint.views()[0]}
        self._fixed: dict[str, torch.Tensor] = {}
        self.free: dict[str, torch.Tensor] = {}
        parameters = {info.name for info in checkpoint.parameters() if not info.is_buffer}
        for name, weight in made.items():
            if isinstance(weight, QuantizedTensor):
                if weight.scheme.scale_dtype == "nested":
                    self._fixed[name] = torch.from_numpy(weight.dequantize())
                else:
                    self.free[name] = torch.from_numpy(weight.scale.copy())
            elif name in parameters:
                value = torch.from_numpy(weight.astype(np.float32))
                (self.free if value.ndim == 1 else self._fixed)[name] = value

    def store(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """`value` as the artifact will hold it."""
        weight = self._made[name]
        if isinstance(weight, QuantizedTensor):
            return torch.from_numpy(round_scale(value.numpy(), weight.scheme.scale_dtype, name=name))
        return torch.from_numpy(value.numpy().astype(weight.dtype).astype(np.float32))

    def logits(self, values: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        weights = {**self._fixed, **{name: self._weight(name, value) for name, value in values.items()}}
        views = [self._views[name] for name in weights if name in self._views]
        parameters = {name: value for name, value in weights.items() if name not in self._views}
        parameters |= stored(self._model.module, "", views, weights)
        parameters |= {alias: parameters[name] for alias, name in self._ties.items() if name in parameters}
        return self._run(parameters, tokens)

    def exact(self, tokens: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self._run({}, tokens)

    def weights(self, values: Mapping[str, torch.Tensor]) -> dict[str, Weight]:
        """All weights, with these stored values of what is free."""
        return {name: self._replaced(name, values.get(name)) for name in self._made}

    def _replaced(self, name: str, value: torch.Tensor | None) -> Weight:
        weight = self._made[name]
        if value is None:
            return weight
        if isinstance(weight, QuantizedTensor):
            return QuantizedTensor(weight.scheme, weight.codes, value.numpy(), weight.zero_point)
        result: np.ndarray[Any, Any] = value.numpy().astype(weight.dtype)
        return result

    def _weight(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """What the free value of that name makes of its parameter."""
        weight = self._made[name]
        if not isinstance(weight, QuantizedTensor):
            return value
        scheme, columns = weight.scheme, weight.shape[1]
        levels = weight.codes  # what is kept for the way back
        if weight.zero_point is not None:
            levels = levels.astype(np.int16) - expand_groups(weight.zero_point, scheme, columns)
        if scheme.granularity == "group":
            value = value.repeat_interleave(scheme.group_size, dim=1)[:, :columns]
        return torch.from_numpy(levels) * value

    def _run(self, parameters: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        out = functional_call(
            self._model.module, parameters, (), {"input_ids": tokens, "use_cache": False}, strict=False
        )
        result: torch.Tensor = out.logits
        return result


def _in_bfloat16(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A block's `forward` with its layers in bfloat16. The output head, whose logits are compared, is in no block."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with bfloat16_layers():
            return forward(*args, **kwargs)

    return run
