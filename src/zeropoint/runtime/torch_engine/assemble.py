"""Building a transformers model from its config and a stream of weights, one weight in memory at a time.

The stream comes from an artifact, or from the quantization of a checkpoint. Each quantized weight is packed for its
kernel when it arrives, so the float model never exists in memory.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from zeropoint.checkpoint.architecture import empty_model
from zeropoint.errors import ArtifactError, UnsupportedError
from zeropoint.machine.heap import release
from zeropoint.runtime.torch_engine.half import HalfLinear, halve_embedding_
from zeropoint.runtime.torch_engine.modules import ExpertStack, QuantLinear, quantize_embedding_
from zeropoint.runtime.torch_engine.packed import PackedWeight
from zeropoint.tensors import to_torch
from zeropoint.values.qtensor import QuantizedTensor

Weight = QuantizedTensor | NDArray[Any]


def assemble(
    config: PretrainedConfig, stream: Iterable[tuple[str, Weight]], *, trust_remote_code: bool = False
) -> PreTrainedModel:
    """Return a `transformers` model in eval mode with the weights of `stream`.

    Unquantized 16-bit matrices stay 16-bit in memory. Unquantized norms and biases, and all activations, are float32,
    the fastest exact choice on a CPU. Raises `ArtifactError` if the stream lacks a parameter or has one that the model
    does not have, `UnsupportedError` if a quantized weight belongs to an unknown kind of module.
    """
    # `ExpertStack` needs experts that are indexed one by one, as only the eager implementation does.
    config._experts_implementation = "eager"
    model = empty_model(config, allow_remote_code=trust_remote_code)
    builder = _Builder(model)
    for name, weight in stream:
        builder.add(name, weight)
    builder.finish()
    release()
    return model


class _Builder:
    """Fills an empty model with weights as they arrive."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.experts: dict[str, dict[int, PackedWeight]] = defaultdict(dict)
        self.tied = self._tied_names()

    def _tied_names(self) -> dict[str, list[str]]:
        """Return {parameter name: other names of the same parameter}, such as the embedding and a tied head."""
        names: dict[int, list[str]] = defaultdict(list)
        for name, parameter in self.model.named_parameters(remove_duplicate=False):
            names[id(parameter)].append(name)
        groups = {name: [n for n in group if n != name] for group in names.values() for name in group}
        for target, source in (getattr(self.model, "all_tied_weights_keys", None) or {}).items():
            for a, b in ((target, source), (source, target)):
                if a in groups and b in groups and b not in groups[a]:
                    groups[a].append(b)
        return groups

    def add(self, name: str, weight: Weight) -> None:
        """Put a weight in its module, and in the modules tied to that weight."""
        if isinstance(weight, QuantizedTensor):
            packed = PackedWeight(weight)
            aliases = self.tied.get(name, [])
            for each in [name, *aliases]:
                self._place_packed(each, packed)
            for alias in aliases:  # transformers ties modules by sharing one parameter
                self._owner(alias)[0].weight = self._owner(name)[0].weight
            return
        tensor = to_torch(weight)
        for each in [name, *self.tied.get(name, [])]:
            self._place_tensor(each, tensor)

    def _owner(self, name: str) -> tuple[nn.Module, str, str]:
        """Return (module, path of the module, name of the parameter in it)."""
        path, _, leaf = name.rpartition(".")
        try:
            return self.model.get_submodule(path), path, leaf
        except AttributeError:
            raise ArtifactError(
                f"the artifact holds {name!r}, which this architecture does not have"
            ) from None

    def _place_packed(self, name: str, packed: PackedWeight) -> None:
        owner, path, leaf = self._owner_or_expert(name)
        if isinstance(owner, nn.Embedding):
            quantize_embedding_(owner, packed)
        elif isinstance(owner, nn.Linear | Conv1D):
            bias = owner.bias
            module = QuantLinear(packed, None, transposed=isinstance(owner, Conv1D))
            if bias is not None:  # if the bias has not arrived yet, `_place_tensor` sets it later
                module.bias = nn.Parameter(bias.data, requires_grad=False)
            self.model.set_submodule(path, module)
        elif leaf.isdigit():
            self.experts[path][int(leaf)] = packed
        else:
            raise UnsupportedError(f"no quantized module for {type(owner).__name__} ({name})")

    def _owner_or_expert(self, name: str) -> tuple[nn.Module, str, str]:
        """Return what `_owner` returns; for an expert, (the model, path of the stacked parameter, expert number)."""
        path, _, leaf = name.rpartition(".")
        if leaf.isdigit():  # `...experts.down_proj.3` is expert 3 of a stacked parameter
            self._owner(path)
            return self.model, path, leaf
        return self._owner(name)

    def _place_tensor(self, name: str, tensor: torch.Tensor) -> None:
        owner, path, leaf = self._owner(name)
        if leaf not in owner._parameters and leaf not in owner._buffers:
            raise ArtifactError(f"the artifact holds {name!r}, which this architecture does not have")
        expected = getattr(owner, leaf).shape
        if tuple(expected) != tuple(tensor.shape):
            raise ArtifactError(
                f"{name} has the shape {tuple(tensor.shape)}, but the architecture needs {tuple(expected)}"
            )
        if leaf in owner._buffers:
            owner._buffers[leaf] = tensor
        elif leaf == "weight" and isinstance(owner, nn.Linear | Conv1D) and tensor.element_size() == 2:
            self.model.set_submodule(path, HalfLinear(owner, tensor))
        elif leaf == "weight" and isinstance(owner, nn.Embedding) and tensor.element_size() == 2:
            halve_embedding_(owner, tensor)
        else:
            owner._parameters[leaf] = nn.Parameter(tensor.float(), requires_grad=False)

    def finish(self) -> None:
        """Put the expert stacks in place. Raises `ArtifactError` if a parameter has no weights."""
        for path, experts in self.experts.items():
            self._place_experts(path, experts)
        missing = [name for name, p in self.model.named_parameters() if p.is_meta]
        if missing:
            raise ArtifactError(
                f"{len(missing)} parameter(s) of the architecture have no weights, the first is {missing[0]}"
            )

    def _place_experts(self, path: str, experts: dict[int, PackedWeight]) -> None:
        owner, _, leaf = self._owner(path)
        parameter = owner._parameters[leaf]
        assert parameter is not None
        count, first, second = parameter.shape
        if sorted(experts) != list(range(count)):
            raise ArtifactError(f"{path} has {len(experts)} of its {count} experts")
        packed = [experts[i] for i in range(count)]
        straight = (packed[0].out_features, packed[0].in_features) == (first, second)
        transposed = bool(getattr(owner, "is_transposed", not straight))
        del owner._parameters[leaf]
        owner.add_module(leaf, ExpertStack(packed, transposed=transposed))
