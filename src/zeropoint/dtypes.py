"""Number types, and their names in safetensors files, numpy, torch, config.json and Zeropoint's formats.

Only names and sizes: numpy's types are made on demand, and `zeropoint.tensors` has torch's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Dtype(NamedTuple):
    """A number type.

    - `name`: its name in numpy, torch and config.json;
    - `stored`: its name in safetensors files, and in GGUF's if GGUF has it;
    - `nbytes`: the bytes of one number;
    - `format`: the name of the float format or scale type in a `Scheme`, "" for none.
    """

    name: str
    stored: str
    nbytes: int
    format: str = ""

    @property
    def is_float(self) -> bool:
        """Return whether the numbers are floats."""
        return "float" in self.name

    def numpy(self) -> np.dtype[Any]:
        """Return numpy's type."""
        import ml_dtypes  # noqa: F401 -- registers bfloat16 with numpy
        import numpy as np

        return np.dtype(self.name)


DTYPES = (
    Dtype("float64", "F64", 8),
    Dtype("float32", "F32", 4, "fp32"),
    Dtype("float16", "F16", 2, "fp16"),
    Dtype("bfloat16", "BF16", 2, "bf16"),
    Dtype("int64", "I64", 8),
    Dtype("int32", "I32", 4),
    Dtype("int16", "I16", 2),
    Dtype("int8", "I8", 1),
    Dtype("uint8", "U8", 1),
    Dtype("bool", "BOOL", 1),
)
BY_NAME = {dtype.name: dtype for dtype in DTYPES}
BY_STORED = {dtype.stored: dtype for dtype in DTYPES}
BY_FORMAT = {dtype.format: dtype for dtype in DTYPES if dtype.format}
