"""The machine: its processor and memory (`detect`), its usable cores (`cores`), and freed memory (`heap`)."""

from __future__ import annotations

from importlib import import_module
from typing import Any

#: Name that the module `zeropoint.machine` had before it became a package -> the module that has it now.
_MOVED = {"Machine": "detect", "LEVEL_FLAGS": "detect", "CGROUP": "cores"}


def __getattr__(name: str) -> Any:
    """Return an old name from the module that has it now, and warn.

    An import of a submodule asks for its name here first: that must import nothing, or the import never ends.
    """
    if name not in _MOVED:
        raise AttributeError(f"module 'zeropoint.machine' has no attribute {name!r}")
    import warnings

    new = f"zeropoint.machine.{_MOVED[name]}"
    warnings.warn(f"{name} of zeropoint.machine is now in {new}", DeprecationWarning, 2)
    return getattr(import_module(new), name)
