"""The machine: properties of its processor and memory (`detect`), and returning freed memory to it (`heap`)."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Return a name of `detect`, which was the module `zeropoint.machine` once, and warn."""
    from zeropoint.machine import detect

    if name.startswith("_") or not hasattr(detect, name):
        raise AttributeError(f"module 'zeropoint.machine' has no attribute {name!r}")
    import warnings

    warnings.warn(f"{name} of zeropoint.machine is now in zeropoint.machine.detect", DeprecationWarning, 2)
    return getattr(detect, name)
