"""BF16 products on processors without BF16 instructions, computed in float32 and rounded to BF16.

On a processor with AVX2 only, torch multiplies BF16 matrices seven times slower than float32 matrices. BF16 hardware
sums in float32 and rounds once: a float32 product rounded to BF16 gives the same result up to the order of summation.
Logits are computed this way; generation and timings use torch's own BF16 products.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: Fewest input rows: with fewer, converting the weights takes longer than torch's own product.
LEAST_ROWS = 16


def fast_products() -> AbstractContextManager[Any]:
    """Return a context in which `linear` of BF16 tensors is computed in float32.

    The context changes nothing if torch has fast BF16 products on this processor.
    """
    return nullcontext() if _has_products() else _Float32Products()


@cache
def _has_products() -> bool:
    """Return whether torch has fast BF16 products on this processor."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # a torch build without oneDNN: leave its products alone
        return True


class _Float32Products(TorchFunctionMode):
    """Replaces `torch.nn.functional.linear` of BF16 tensors by a float32 product."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.linear and _is_slow(args):
            bias = (kwargs or {}).get("bias", args[2] if len(args) > 2 else None)
            product = func(args[0].float(), args[1].float(), None if bias is None else bias.float())
            return product.to(torch.bfloat16)
        return func(*args, **(kwargs or {}))


def _is_slow(args: tuple[Any, ...]) -> bool:
    """Return whether torch is slow at this product: BF16 tensors on the CPU, at least `LEAST_ROWS` input rows."""
    if len(args) < 2 or not all(isinstance(each, torch.Tensor) for each in args[:2]):
        return False
    x, weight = args[:2]
    is_bf16 = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu"
    return bool(is_bf16 and x.numel() >= LEAST_ROWS * x.shape[-1])
