"""Kernel backends: products of float activations with packed, quantized weights.

A backend is a module of this package with the same functions:

- `refusal(scheme, shape, device)` returns why the backend cannot take a weight, or `None`;
- `pack(weight)` converts a `QuantizedTensor` to the backend's own layout, at load and never on disk; `unpack(packed)`
  returns the same weight;
- `linear(x, packed, bias)` and `linear_ptr(...)` compute the product; `rows(packed, ids)` is an embedding lookup.

`BACKENDS` lists the backends, fastest first; the last one takes every integer weight on the CPU. The modules
`divergence`, `grid` and `columns` call other C++ kernels, and compute the same in numpy where the native library is
missing. This package imports no torch.
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
    """Return the backend module of that name. Raises `UnsupportedError` for an unknown name."""
    if name not in BACKENDS:
        raise UnsupportedError(f"there is no kernel backend {name!r}: use {', '.join(BACKENDS)}")
    return import_module(f"zeropoint.kernels.{name}")


def choose(scheme: Scheme, shape: tuple[int, int], device: str = "cpu") -> tuple[ModuleType, dict[str, str]]:
    """Return the first backend that takes a weight of shape `[out, in]`, and the refusals of the backends before it.

    Raises `UnsupportedError` with every refusal if no backend takes the weight.
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
