"""The plain torch model that a quantized one must agree with: dequantized weights, rounded inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Activation


def round_activations(x: Tensor, activation: Activation | None) -> Tensor:
    """Dynamic symmetric rounding of the last axis, one scale per token or group of channels."""
    if activation is None:
        return x
    width = x.shape[-1]
    size = activation.group_size or width
    padded = nn.functional.pad(x, (0, -width % size)).unflatten(-1, (-1, size))
    scale = padded.abs().amax(-1, keepdim=True) / activation.qmax
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((padded / safe).round() * scale).flatten(-2)[..., :width]


def fake_quantize_(model: PreTrainedModel, weights: Mapping[str, QuantizedTensor]) -> PreTrainedModel:
    """Replace each quantized weight of a float model by its dequantized values, and round the inputs
    of the linear layers as the scheme says. Embedding rows are read as they are."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules())
    shared = {name: id(p) for name, p in parameters.items()}
    with torch.no_grad():
        for name, weight in weights.items():
            values = torch.from_numpy(weight.dequantize())
            path, _, leaf = name.rpartition(".")
            if leaf.isdigit():
                target = parameters[path][int(leaf)]
                target.copy_(values if target.shape == values.shape else values.t())
                continue
            target = parameters[name]
            owner = modules[path]
            target.copy_(values.t() if isinstance(owner, Conv1D) else values)
            for other, identity in shared.items():
                if identity == shared[name]:
                    _hook(modules[other.rpartition(".")[0]], weight.scheme.activation)
    return model


def _hook(module: nn.Module, activation: Activation | None) -> None:
    if isinstance(module, nn.Linear | Conv1D) and activation is not None:
        module.register_forward_pre_hook(lambda _, args: (round_activations(args[0], activation),))
