"""Tuning of a whole quantized model towards the float model's logits, by the plan's `tune_model` algorithm.

Unlike all other steps of quantization, this one holds the model in memory: twice in float32, plus the activations of a
backward pass over one window. `tuning_need` predicts that memory, before the first weight is read.
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
from zeropoint.predictions import Need
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.module_weights import as_parameters
from zeropoint.quantization.product_precision import bfloat16_layers, reduced_precision
from zeropoint.reference.rounding import round_scale
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight, expand_groups

logger = logging.getLogger(__name__)

#: Estimate of the activations that a block keeps for the backward pass, per token, in multiples of the hidden size.
KEPT_WIDTHS = 40

#: Estimate of the number of tensors of a window's logits that are in memory at once.
LOGITS = 8


@dataclass(frozen=True, slots=True)
class ModelTuner:
    """A `tune_model` algorithm, `name`, with its options."""

    name: str
    options: Any

    def tune(
        self, checkpoint: Checkpoint, weights: Mapping[str, Weight], tokens: torch.Tensor, seed: int
    ) -> tuple[dict[str, Weight], str]:
        """Tune the weights of a model on tokens `[windows, length]`; return all weights, and a warning ("" for none).

        If tuning finds nothing better, the weights are returned unchanged, with a warning.
        """
        with reduced_precision():
            twin = Twin(checkpoint, weights)
            tuned: Tuned = load(self.name).tune_model(twin, tokens, self.options, seed)
        logger.info("%s changed the KL divergence from %.5g to %.5g", self.name, tuned.before, tuned.after)
        if tuned.after < tuned.before:
            return twin.weights(tuned.values), ""
        warning = f"{self.name} found nothing better than what it started from: no scale or norm was changed"
        logger.warning("%s", warning)
        return dict(weights), warning


def model_tuner(plan: Plan) -> ModelTuner | None:
    """Return the plan's tuner for the whole model, or None. Raises `UsageError` if the choices name different ones."""
    tuners: list[ModelTuner] = []
    for choice in plan.choices.values():
        name = parts(choice.algorithm).get("tune_model") if choice.scheme is not None else None
        if name is not None:
            tuner = ModelTuner(name, part_options(choice.algorithm, choice.options)[name])
            if tuner not in tuners:
                tuners.append(tuner)
    if len(tuners) > 1:
        raise UsageError("the whole model is tuned at once: give all weights the same tuning in the plan")
    return tuners[0] if tuners else None


def tuning_need(checkpoint: Checkpoint, length: int) -> Need:
    """Return what tuning on windows of `length` tokens needs: two float32 models and a backward pass."""
    return Need(4 * (2 * checkpoint.numel() + backward_numbers(checkpoint, length, LOGITS)))


def backward_numbers(checkpoint: Checkpoint, length: int, logits: int) -> int:
    """Return about how many numbers a backward pass over a window of `length` tokens keeps in memory.

    These are the activations of the blocks, and `logits` tensors of the window's logits.
    """
    config = checkpoint.config.get_text_config()
    blocks = KEPT_WIDTHS * config.hidden_size * len(checkpoint.blocks())
    return int(length * (blocks + logits * config.vocab_size))


class Twin:
    """The float32 model and the quantized model on one torch module, as `distill.Student` asks.

    The module holds the float32 parameters. The quantized model is the same module run with other parameters, made from
    the weights `initial`. Trainable (`free`) are the kept vectors (norms,
    biases), and the scales of all quantized weights without two-level scales.
    """

    def __init__(self, checkpoint: Checkpoint, initial: Mapping[str, Weight]) -> None:
        self._model = FilledModel(checkpoint)
        self._model.fill(self._model.names(""))
        for path in self._model.blocks:
            block = self._model.module.get_submodule(path)
            block.forward = _in_bfloat16(block.forward)
        self._initial = initial
        self._ties = {info.name: info.tied_to for info in checkpoint.parameters() if info.tied_to is not None}
        self._views = {view.name: view for view in checkpoint.views()[0]}
        self._fixed: dict[str, torch.Tensor] = {}
        self.free: dict[str, torch.Tensor] = {}
        parameters = {info.name for info in checkpoint.parameters() if not info.is_buffer}
        for name, weight in initial.items():
            if isinstance(weight, QuantizedTensor):
                if weight.scheme.scale_dtype == "nested":
                    self._fixed[name] = torch.from_numpy(weight.dequantize())
                else:
                    self.free[name] = torch.from_numpy(weight.scale.copy())
            elif name in parameters:
                value = torch.from_numpy(weight.astype(np.float32))
                (self.free if value.ndim == 1 else self._fixed)[name] = value

    def store(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return `value` rounded to the type in which the artifact stores it."""
        weight = self._initial[name]
        if isinstance(weight, QuantizedTensor):
            return torch.from_numpy(round_scale(value.numpy(), weight.scheme.scale_dtype, name=name))
        return torch.from_numpy(value.numpy().astype(weight.dtype).astype(np.float32))

    def logits(self, values: Mapping[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Return the quantized model's logits with these trainable values (see `distill.Student`)."""
        weights = {**self._fixed, **{name: self._weight(name, value) for name, value in values.items()}}
        views = [self._views[name] for name in weights if name in self._views]
        parameters = {name: value for name, value in weights.items() if name not in self._views}
        parameters |= as_parameters(self._model.module, "", views, weights)
        parameters |= {alias: parameters[name] for alias, name in self._ties.items() if name in parameters}
        return self._run(parameters, tokens)

    def exact(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the float model's logits."""
        with torch.no_grad():
            return self._run({}, tokens)

    def weights(self, values: Mapping[str, torch.Tensor]) -> dict[str, Weight]:
        """Return all weights, with the trainable ones replaced by `values` (already rounded by `store`)."""
        return {name: self._replaced(name, values.get(name)) for name in self._initial}

    def _replaced(self, name: str, value: torch.Tensor | None) -> Weight:
        """Return one weight with a new trainable value (None: unchanged)."""
        weight = self._initial[name]
        if value is None:
            return weight
        if isinstance(weight, QuantizedTensor):
            return QuantizedTensor(weight.scheme, weight.codes, value.numpy(), weight.zero_point)
        result: np.ndarray[Any, Any] = value.numpy().astype(weight.dtype)
        return result

    def _weight(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return the float parameter for a trainable value: codes times scales, or the value itself for a vector."""
        weight = self._initial[name]
        if not isinstance(weight, QuantizedTensor):
            return value
        scheme, columns = weight.scheme, weight.shape[1]
        levels = weight.codes  # int8 or int16, because the backward pass keeps these in memory
        if weight.zero_point is not None:
            levels = levels.astype(np.int16) - expand_groups(weight.zero_point, scheme, columns)
        if scheme.granularity == "group":
            value = value.repeat_interleave(scheme.group_size, dim=1)[:, :columns]
        return torch.from_numpy(levels) * value

    def _run(self, parameters: dict[str, torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
        """Return the module's logits with some parameters replaced."""
        out = functional_call(
            self._model.module, parameters, (), {"input_ids": tokens, "use_cache": False}, strict=False
        )
        result: torch.Tensor = out.logits
        return result


def _in_bfloat16(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's `forward` with its layers in bfloat16. (The output head, outside the blocks, stays float32.)"""

    def run(*args: Any, **kwargs: Any) -> Any:
        """Run `forward` with its layers in bfloat16."""
        with bfloat16_layers():
            return forward(*args, **kwargs)

    return run
