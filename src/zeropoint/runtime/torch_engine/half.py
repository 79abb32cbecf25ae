"""Linear and embedding layers with 16-bit float weights in memory, for FP16 and BF16 artifacts."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from zeropoint.runtime.torch_engine.modules import extend_class


class HalfLinear(nn.Module):
    """A linear layer `x W^T + b` with W in float16 or bfloat16; torch computes the product in W's dtype.

    Replaces `nn.Linear` and `Conv1D`: a `Conv1D` weight `[in, out]` is transposed once at load.
    """

    def __init__(self, owner: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.transposed = isinstance(owner, Conv1D)
        if self.transposed:
            weight = weight.t().contiguous()
        self.out_features, self.in_features = weight.shape
        self.weight = nn.Parameter(weight, requires_grad=False)
        bias = owner.bias
        self.bias = nn.Parameter(bias.data, requires_grad=False) if isinstance(bias, Tensor) else None

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.linear(x.to(self.weight.dtype), self.weight).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.weight.dtype}, bias={self.bias is not None}"


class HalfEmbedding(nn.Embedding):
    """An embedding with a 16-bit table; its output rows are float32, like all activations."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


def halve_embedding_(module: nn.Embedding, weight: Tensor) -> None:
    """Turn an embedding into a `HalfEmbedding` in place; the behaviour of a subclass of `nn.Embedding` stays."""
    extend_class(module, nn.Embedding, HalfEmbedding)
    module.weight = nn.Parameter(weight, requires_grad=False)
