"""Zeropoint: fit any LLM to the machine you have, and prove that it still works.

>>> from zeropoint import AutoModelForCausalLM
>>> model = AutoModelForCausalLM.from_pretrained("gpt2", load_in_8bit=True)  # doctest: +SKIP

Importing the package is cheap: torch and transformers are imported by the first function that needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from zeropoint import _moved

__version__ = "0.1.0"
_moved.install()

if TYPE_CHECKING:
    from zeropoint.api import (
        compare,
        convert_qat,
        export,
        fit,
        import_model,
        load,
        prepare_qat,
        quantize,
        train,
    )
    from zeropoint.auto_model import AutoModelForCausalLM
    from zeropoint.errors import ZeropointError
    from zeropoint.values.scheme import Scheme

__all__ = [
    "AutoModelForCausalLM",
    "Scheme",
    "ZeropointError",
    "__version__",
    "compare",
    "convert_qat",
    "export",
    "fit",
    "import_model",
    "load",
    "prepare_qat",
    "quantize",
    "train",
]

#: Public name -> the module that defines it, imported on first access.
_HOMES = {
    "AutoModelForCausalLM": "zeropoint.auto_model",
    "Scheme": "zeropoint.values.scheme",
    "ZeropointError": "zeropoint.errors",
    "compare": "zeropoint.api",
    "convert_qat": "zeropoint.api",
    "export": "zeropoint.api",
    "fit": "zeropoint.api",
    "import_model": "zeropoint.api",
    "load": "zeropoint.api",
    "prepare_qat": "zeropoint.api",
    "quantize": "zeropoint.api",
    "train": "zeropoint.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'zeropoint' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
