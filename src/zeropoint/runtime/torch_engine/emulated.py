"""BF16 products on processors without BF16 instructions: computed in float32, rounded to BF16.

torch multiplies BF16 matrices seven times slower than float32 ones where the processor has AVX2 alone. BF16 hardware
sums products in float32 and rounds the sum once, so a float32 product rounded to BF16 is what such hardware returns, to
the order of summation. Quality is measured so; speed is not, because it shall be torch's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

#: Below so many rows the weights' conversion takes longer than torch's own product.
LEAST_ROWS = 16


def fast_products() -> AbstractContextManager[Any]:
    """Return a context in which BF16 products are computed in float32, or one that changes nothing where torch has
    BF16 products of its own."""
    return nullcontext() if _has_products() else _Float32Products()


@cache
def _has_products() -> bool:
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except AttributeError:  # a build of torch without oneDNN: what it does is not known
        return True


class _Float32Products(TorchFunctionMode):
    """Replace `torch.nn.functional.linear` of BF16 tensors."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is torch.nn.functional.linear and _worth(args):
            bias = (kwargs or {}).get("bias", args[2] if len(args) > 2 else None)
            product = func(args[0].float(), args[1].float(), None if bias is None else bias.float())
            return product.to(torch.bfloat16)
        return func(*args, **(kwargs or {}))


def _worth(args: tuple[Any, ...]) -> bool:
    """Return True for an input and a weight that are plain BF16 tensors, with rows enough."""
    if len(args) < 2 or not all(isinstance(each, torch.Tensor) for each in args[:2]):
        return False
    x, weight = args[:2]
    is_half = x.dtype == weight.dtype == torch.bfloat16 and x.device.type == "cpu"
    return is_half and x.numel() >= LEAST_ROWS * x.shape[-1]
