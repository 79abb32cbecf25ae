"""Kernel backends: products of float activations with packed, quantized weights.

A backend is a module of this package with the same functions:

- `refusal(scheme, shape, device)`: why it cannot take a weight, or `None`;
- `pack(weight)`: its private layout of a `QuantizedTensor`, made at load and never saved; `unpack(packed)`: the very
  weight again;
- `linear(x, packed, bias)` and `linear_ptr(...)`: the product; `rows(packed, ids)`: an embedding lookup.

`BACKENDS` lists them, fastest first; the last one takes everything. `divergence`, `grid` and `columns` are other loops
in C++, each beside a plain computation of the same. This package imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from zeropoint.errors import UnsupportedError
from zeropoint.kernels.library import active_isa, isa_levels
from zeropoint.values.scheme import Scheme

__all__ = ["BACKENDS", "active_isa", "backend", "choose", "isa_levels"]

BACKENDS = ("native", "reference")


def backend(name: str) -> ModuleType:
    """The backend module of that name."""
    if name not in BACKENDS:
        raise UnsupportedError(f"there is no kernel backend {name!r}: use {', '.join(BACKENDS)}")
    return import_module(f"zeropoint.kernels.{name}")


def choose(scheme: Scheme, shape: tuple[int, int], device: str = "cpu") -> tuple[ModuleType, dict[str, str]]:
    """The first backend that takes a weight `[out, in]`, and why each one before it refused.

    Raises `UnsupportedError`, with every reason, when none does.
    """
    reasons: dict[str, str] = {}
    for name in BACKENDS:
        module = backend(name)
        reason = module.refusal(scheme, shape, device)
        if reason is None:
            return module, reasons
        reasons[name] = reason
    listed = "; ".join(f"{name}: {reason}" for name, reason in reasons.items())
    raise UnsupportedError(f"no kernel takes a {scheme} weight of shape {shape} on {device} ({listed})")
