"""`Header`: checked access to the fields of a GGUF header."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.architecture.families import MODEL_TYPES
from zeropoint.models.config import MAX_NUMBER, MAX_SIZE


class Header:
    """The fields of a GGUF header under the architecture's prefix (`llama.` in `llama.block_count`).

    Accessors raise `CheckpointError`, with the key, for a missing or malformed value. The constructor raises
    `UnsupportedError` for an architecture that Zeropoint does not know.
    """

    def __init__(self, metadata: Mapping[str, Any], tensors: Container[str]) -> None:
        arch = metadata.get("general.architecture")
        if not isinstance(arch, str) or arch not in MODEL_TYPES:
            raise UnsupportedError(
                f"GGUF architecture {str(arch)[:40]!r} is not read here: {', '.join(sorted(MODEL_TYPES))} are"
            )
        self.arch = arch
        self.tensors = tensors
        self.metadata = metadata

    def get(self, key: str) -> Any:
        """Return a field's value, None if missing. A list with the same number for each layer becomes that number.

        Raises `UnsupportedError` if the numbers differ between layers.
        """
        value = self.metadata.get(f"{self.arch}.{key}")
        if isinstance(value, np.ndarray) and len(value) and key != "attention.sliding_window_pattern":
            if not bool((value == value[0]).all()):
                raise UnsupportedError(f"its header's {self.arch}.{key} differs from layer to layer")
            return value[0].item()
        return value

    def has(self, key: str) -> bool:
        """Return whether the header has the field."""
        return self.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        """Return an integer from 1 to `MAX_SIZE`."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"its header has no {self.arch}.{key}")
        if type(value) is not int or not 0 < value <= MAX_SIZE:
            raise CheckpointError(f"its header's {self.arch}.{key} is {str(value)[:40]}, not a size")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number, as the shortest decimal with the same float32 value."""
        value = self.get(key)
        value = default if value is None else value
        if value is None:
            raise CheckpointError(f"its header has no {self.arch}.{key}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= MAX_NUMBER:
            raise CheckpointError(f"its header's {self.arch}.{key} is {str(value)[:40]}, not a number")
        short = float(str(np.float32(value)))
        return short if np.float32(short) == np.float32(value) else float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return a flag, or `default` if the header does not have the field."""
        value = self.get(key)
        if value is not None and not isinstance(value, bool | np.bool_):
            raise CheckpointError(f"its header's {self.arch}.{key} is {str(value)[:40]}, not a flag")
        return default if value is None else bool(value)
