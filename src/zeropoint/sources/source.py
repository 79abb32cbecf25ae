"""`Source`: the config and tensors of a model on disk, and their comparison with an architecture.

Modules that read tensors are imported on demand, so that running an artifact costs neither their time nor their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.dtypes import BY_STORED
from zeropoint.errors import CheckpointError
from zeropoint.sources.names import COMPUTED
from zeropoint.values.qtensor import QuantizedTensor, Weight

#: Number of names that a message spells out; it only counts the others.
MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """The safetensors type and the shape of a stored tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A parameter that an architecture requires.

    - `shape`: the required shape; None if a converter builds the parameter;
    - `stored`: the names of its stored tensors, empty if there are none;
    - `floats`: whether the parameter must be of a float type.
    """

    name: str
    shape: tuple[int, ...] | None
    stored: Sequence[str]
    floats: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model on disk.

    - `path`, `name`: its folder or GGUF file, and the user's name for it;
    - `config`: config.json;
    - `files`: the files with weights;
    - `tensors`: transformers' name of each stored tensor -> type and shape;
    - `weight`: reads one tensor, quantized if a `Scheme` describes its stored form;
    - `notes`: messages for the user about the files.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    weight: Callable[[str], Weight]
    notes: tuple[str, ...] = ()
    tokenizer_files: Callable[[Path], list[Path]] | None = field(default=None)
    """Writes the tokenizer files into a folder; None if the model's folder has them."""
    stored_nbytes: int | None = None
    """Size in bytes of all tensors in the files; None if it follows from their types and shapes."""

    def read(self, name: str) -> NDArray[Any]:
        """Return one tensor as an array, dequantized. Raises `CheckpointError` if it holds NaN or infinity."""
        value = self.weight(name)
        array = value.dequantize() if isinstance(value, QuantizedTensor) else value
        if _is_float(self.tensors[name].dtype) and not is_finite(array):
            from zeropoint.reference.rounding import check_finite

            check_finite(array, f"{self.name}: {name}")
        return array

    def nbytes(self) -> int:
        """Return the size in bytes of all tensors as stored."""
        if self.stored_nbytes is not None:
            return self.stored_nbytes
        return sum(
            prod(each.shape) * BY_STORED[each.dtype].nbytes
            for each in self.tensors.values()
            if each.dtype in BY_STORED
        )

    def digest(self) -> str:
        """Return the sha256 of the weight files (name and bytes of each, in name order), as hex."""
        from zeropoint.files.safetensors_file import digest

        return digest(list(self.files))

    def same(self, first: str, second: str) -> bool:
        """Return whether two tensors hold the same numbers."""
        if self.tensors[first].shape != self.tensors[second].shape:
            return False
        return bool(np.array_equal(self.read(first), self.read(second)))

    def check(self, wanted: Iterable[Wanted], unused: Iterable[str]) -> tuple[str, ...]:
        """Compare the stored tensors with an architecture's parameters. Return `notes` and a note on unused tensors.

        Raises `CheckpointError` for a tensor that is missing, has the wrong shape, has a type that Zeropoint does not
        read, or is stored twice with different values. Unused tensors that match `COMPUTED` get no note.
        """
        parameters = list(wanted)
        if missing := [each.name for each in parameters if not each.stored]:
            raise CheckpointError(self._missing(missing))
        for each in parameters:
            self._check_one(each)
        left_out = [name for name in unused if not COMPUTED.fullmatch(name)]
        if not left_out:
            return self.notes
        return *self.notes, (
            f"{self.name} holds {len(left_out)} tensors for which the model that its config.json describes has no "
            f"place, and which are left out: {listed(left_out)}"
        )

    def _check_one(self, wanted: Wanted) -> None:
        """Raise `CheckpointError` unless a parameter's stored tensors have the right types, shape and equal values."""
        for stored in wanted.stored:
            dtype = self.tensors[stored].dtype
            if dtype not in BY_STORED:
                raise CheckpointError(
                    f"{self.name} stores {stored} as {dtype}, a type of numbers that Zeropoint does not read: use the "
                    "original model in bfloat16, float16 or float32"
                )
            if wanted.floats and not BY_STORED[dtype].is_float:
                raise CheckpointError(
                    f"{self.name} stores {stored} as {dtype}, and the model has floats there: codes of a quantized "
                    "model without their scales mean nothing; use the original"
                )
        if wanted.shape is None:
            return
        first = wanted.stored[0]
        if (shape := self.tensors[first].shape) != wanted.shape:
            raise CheckpointError(
                f"{self.name}: {wanted.name} has the shape {shape} but its config.json implies {wanted.shape}: the two "
                "belong to different models"
            )
        if other := next((each for each in wanted.stored[1:] if not self.same(first, each)), None):
            raise CheckpointError(
                f"{self.name} holds {wanted.name} twice with different numbers, as {first} and as {other}: save the "
                "model again"
            )

    def _missing(self, names: Sequence[str]) -> str:
        """Return the message for missing tensors."""
        head = "lm_head" in names[0] or "embed_out" in names[0]
        untied = head and len(names) == 1
        reason = (
            "the download is incomplete, or the model shares its embedding with the head and config.json lacks "
            '"tie_word_embeddings": true'
            if untied
            else "the download is incomplete, or the config belongs to another model"
        )
        return (
            f"{self.name} lacks {len(names)} tensors that its config.json asks for, {listed(names)}: {reason}"
        )


def is_finite(array: NDArray[Any]) -> bool:
    """Return whether every value of a float array is finite. Tests bfloat16 by its exponent bits, which is faster."""
    if array.dtype.name == "bfloat16":
        return not bool(((array.view(np.uint16) & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())


def _is_float(stored: str) -> bool:
    """Return whether a safetensors type holds floats."""
    return stored in BY_STORED and BY_STORED[stored].is_float


def listed(names: Sequence[str]) -> str:
    """Return the first few names, and the number of the others, as text."""
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"
