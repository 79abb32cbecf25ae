"""`Source`: what a model holds, without its architecture, and how it is held against one.

Readers of tensors are imported where they are used: running an artifact takes neither their time nor their memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError
from zeropoint.sources.names import COMPUTED
from zeropoint.values.qtensor import QuantizedTensor, Weight

#: Types that are floats.
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})

#: Names that a sentence lists before it only counts.
MOST_NAMES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """A stored tensor: its type as safetensors names it, and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A parameter that an architecture asks for, and the tensors that it is made of; none where they are missing.

    `shape` is None where the parameter is assembled of several tensors. `floats`: the model computes with it.
    """

    name: str
    shape: tuple[int, ...] | None
    stored: Sequence[str]
    floats: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A model on the disk. `path` is its folder or GGUF file, `name` what the user called it.

    `config` is its config.json, `files` those that hold weights, `tensors` every stored tensor under the name that
    transformers gives it, `notes` what a user should hear of the files. `weight` reads one tensor as it is stored, on
    its integer grid where it has one that Zeropoint knows.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    weight: Callable[[str], Weight]
    notes: tuple[str, ...] = ()
    tokenizer_files: Callable[[Path], list[Path]] | None = field(default=None)
    """Writes the tokenizer's files into a folder, for a source that does not have them beside its weights."""
    stored_nbytes: int | None = None
    """Bytes of all tensors in the files, where their types do not say it."""

    def read(self, name: str) -> NDArray[Any]:
        """Return one tensor as an array. Raise `CheckpointError` where it holds NaN or infinity."""
        value = self.weight(name)
        array = value.dequantize() if isinstance(value, QuantizedTensor) else value
        if self.tensors[name].dtype in FLOATS and not is_finite(array):
            from zeropoint.reference.rounding import check_finite

            check_finite(array, f"{self.name}: {name}")
        return array

    def nbytes(self) -> int:
        """Return the bytes of all tensors, as stored."""
        from zeropoint.files.safetensors_file import DTYPES

        if self.stored_nbytes is not None:
            return self.stored_nbytes
        return sum(
            prod(each.shape) * DTYPES[each.dtype].itemsize
            for each in self.tensors.values()
            if each.dtype in DTYPES
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
        """Hold what is stored against what an architecture asks for; return the notes on it, those of the files first.

        Raise `CheckpointError` for tensors that are missing, of another shape, of a type that is not read, or stored
        twice with different numbers. Tensors that nothing asks for are named in a note; tables that every model
        computes itself are not.
        """
        every = list(wanted)
        if missing := [each.name for each in every if not each.stored]:
            raise CheckpointError(self._missing(missing))
        for each in every:
            self._check_one(each)
        left = [name for name in unused if not COMPUTED.fullmatch(name)]
        if not left:
            return self.notes
        return *self.notes, (
            f"{self.name} holds {len(left)} tensors for which the model that its config.json describes has no place, "
            f"and which are left out: {listed(left)}"
        )

    def _check_one(self, wanted: Wanted) -> None:
        from zeropoint.files.safetensors_file import DTYPES

        for stored in wanted.stored:
            dtype = self.tensors[stored].dtype
            if dtype not in DTYPES:
                raise CheckpointError(
                    f"{self.name} stores {stored} as {dtype}, a type of numbers that Zeropoint does not read: use the "
                    "original model in bfloat16, float16 or float32"
                )
            if wanted.floats and dtype not in FLOATS:
                raise CheckpointError(
                    f"{self.name} stores {stored} as {dtype}, and the model has floats there: codes of a quantized "
                    "model without their scales mean nothing; use the original"
                )
        if wanted.shape is None:
            return
        first = wanted.stored[0]
        if (found := self.tensors[first].shape) != wanted.shape:
            raise CheckpointError(
                f"{self.name}: {wanted.name} has the shape {found} but its config.json implies {wanted.shape}: the two "
                "belong to different models"
            )
        if other := next((each for each in wanted.stored[1:] if not self.same(first, each)), None):
            raise CheckpointError(
                f"{self.name} holds {wanted.name} twice with different numbers, as {first} and as {other}: save the "
                "model again"
            )

    def _missing(self, names: Sequence[str]) -> str:
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
    """Return whether every value of an array of floats is finite; bfloat16 is judged by its bits, which is fast."""
    if array.dtype.name == "bfloat16":
        return not bool(((array.view(np.uint16) & 0x7F80) == 0x7F80).any())
    return bool(np.isfinite(array).all())


def listed(names: Sequence[str]) -> str:
    """Return names in words: the first few, and how many more there are."""
    shown = ", ".join(names[:MOST_NAMES])
    return shown if len(names) <= MOST_NAMES else f"{shown} and {len(names) - MOST_NAMES} more"
