"""The layers of a model in training: linear layers, embeddings and stacked experts over a `FakeQuantizer`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zeropoint.errors import UnsupportedError
from zeropoint.runtime.torch_engine.modules import ExpertWeight, extend_class
from zeropoint.training.fake_quantize import FakeQuantizer


class FakeQuantizedLinear(nn.Module):
    """Trainable replacement of `nn.Linear` and transformers' `Conv1D`; maps `[..., in]` to `[..., out]`.

    A tied output head does not own its quantizer (`owns=False`): the embedding does, so each parameter has one name.
    """

    def __init__(self, quantizer: FakeQuantizer, bias: nn.Parameter | None, *, owns: bool = True) -> None:
        super().__init__()
        self.out_features, self.in_features = quantizer.shape
        self.bias = bias
        self._shared = (
            [] if owns else [quantizer]
        )  # a list hides the module from `parameters` and `state_dict`
        if owns:
            self.quantizer = quantizer

    @property
    def weight(self) -> Tensor:
        """Return the dequantized weight `[out, in]`."""
        dequantized: Tensor = self._quantizer()()
        return dequantized

    def forward(self, x: Tensor) -> Tensor:
        return self._quantizer().linear(x, self.bias)

    def _quantizer(self) -> FakeQuantizer:
        return self._shared[0] if self._shared else self.quantizer


class FakeQuantizedEmbedding(nn.Embedding):
    """Trainable replacement of `nn.Embedding` and, through `extend_class`, of its subclasses."""

    quantizer: FakeQuantizer

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """Return the dequantized weight `[vocabulary, hidden]`."""
        dequantized: Tensor = self.quantizer()
        return dequantized

    def forward(self, input: Tensor) -> Tensor:
        return self.quantizer.rows(input)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class FakeQuantizedExperts(nn.Module):
    """Trainable replacement of a stacked 3-D expert parameter; indexing returns the weight of one expert."""

    def __init__(self, experts: Sequence[FakeQuantizer], *, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        self.experts = nn.ModuleList(experts)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def __len__(self) -> int:
        return len(self.experts)

    def __getitem__(self, index: Tensor | int) -> ExpertWeight:
        quantizer = self.experts[int(index)]
        assert isinstance(quantizer, FakeQuantizer)
        return ExpertWeight(quantizer, transposed=self.transposed)


def place(model: nn.Module, name: str, quantizer: FakeQuantizer, aliases: Sequence[str] = ()) -> None:
    """Replace the module that owns the weight `name`, and the modules of its `aliases`, by trainable ones.

    The first module that is placed owns the quantizer. Raises `UnsupportedError` for an unknown kind of module.
    """
    for number, each in enumerate([name, *aliases]):
        path = each.rpartition(".")[0]
        owner = model.get_submodule(path)
        if isinstance(owner, nn.Embedding):
            extend_class(owner, nn.Embedding, FakeQuantizedEmbedding)
            del owner._parameters["weight"]
            owner.quantizer = quantizer
        elif isinstance(owner, nn.Linear | Conv1D):
            bias = owner.bias if isinstance(owner.bias, nn.Parameter) else None
            model.set_submodule(path, FakeQuantizedLinear(quantizer, bias, owns=number == 0))
        else:
            raise UnsupportedError(f"{name} cannot be trained: {type(owner).__name__} is no linear layer")


def place_experts(model: nn.Module, name: str, quantizers: Sequence[FakeQuantizer]) -> None:
    """Replace the stacked expert parameter `name` by its trainable experts, in the order of their numbers."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    del owner._parameters[leaf]
    transposed = bool(getattr(owner, "is_transposed", False))
    owner.add_module(leaf, FakeQuantizedExperts(quantizers, transposed=transposed))
