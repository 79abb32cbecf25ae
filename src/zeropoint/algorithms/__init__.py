"""Ways to choose the numbers. One file per algorithm; the file's name is the algorithm's name.

A module here has a docstring (idea, paper, cost), `NEEDS` (the statistics it asks for), a frozen dataclass
`Options`, and `quantize(weight, stats, scheme, options) -> QuantizedTensor`. It is pure: same inputs, same
codes, no files, no global state. There is no registry: `load("rtn")` imports `zeropoint.algorithms.rtn`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any

from zeropoint.errors import UsageError


def names() -> list[str]:
    """The algorithms of this release."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> ModuleType:
    """The module of an algorithm. Raises `UsageError` for an unknown name."""
    if name not in names():
        raise UsageError(f"there is no algorithm {name!r}: use {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def make_options(name: str, values: Mapping[str, Any]) -> Any:
    """The algorithm's `Options` from plain values. Raises `UsageError` for an unknown or mistyped one."""
    options = load(name).Options
    known = {field.name for field in fields(options)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(
            f"algorithm {name} has no option {unknown[0]!r}: it takes {', '.join(sorted(known))}"
        )
    default = options()
    for key, value in values.items():
        wanted = type(getattr(default, key))
        if not isinstance(value, wanted) and not (wanted is float and isinstance(value, int)):
            raise UsageError(f"option {key} of algorithm {name} is a {wanted.__name__}, not {value!r}")
    return options(**values)
