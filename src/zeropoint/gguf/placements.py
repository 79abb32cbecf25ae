"""Where each tensor of a model stands in a GGUF file, and in which order of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.gguf.families import FUSED, LINEARS, NORMS, Family
from zeropoint.gguf.superblocks import Storable, SuperTensor
from zeropoint.models.spec import MODEL, LayerRecord, LinearSlot, LinearSource, ModelSpec
from zeropoint.values.qtensor import QuantizedTensor, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """How one stored tensor `source` is written as `name`.

    `rows`: row i of the file is row `rows[i]` here. `transposed`: kept as `[in, out]` by the model's own code, unless
    quantized. `one_plus`: a norm whose stored weight lacks the 1 that llama.cpp expects.
    """

    name: str
    source: str
    rows: NDArray[np.int64] | None = None
    transposed: bool = False
    one_plus: bool = False

    def place(self, weight: Storable) -> Storable:
        """Return the weight in the file's order. Vectors become float32."""
        if isinstance(weight, SuperTensor):
            return weight if self.rows is None else weight.take(self.rows)
        if isinstance(weight, QuantizedTensor):
            return weight if self.rows is None else _reordered(weight, self.rows)
        if weight.ndim == 1:
            weight = weight.astype(np.float32)
        if self.transposed and weight.ndim == 2:
            weight = weight.T
        if self.rows is not None:
            weight = weight[self.rows]
        return np.ascontiguousarray(weight + np.float32(1) if self.one_plus else weight)

    def restore(self, weight: Weight) -> Weight:
        """Return the file's weight in the model's own order: the inverse of `place`."""
        back = None if self.rows is None else np.argsort(self.rows)
        if isinstance(weight, QuantizedTensor):
            return weight if back is None else _reordered(weight, back)
        if weight.ndim == 1:
            weight = weight.astype(np.float32)
        if self.one_plus:
            weight = weight - np.float32(1)
        if back is not None:
            weight = weight[back]
        return np.array(weight.T if self.transposed and weight.ndim == 2 else weight, order="C")


def placements(family: Family, record: ModelSpec) -> Iterator[Placement]:
    """Yield one placement for each tensor of the file.

    The parts of a fused projection are one tensor. A tied head is the embedding, stored twice where llama.cpp wants it
    so.
    """
    heads = {LinearSlot.Q: record.config.heads, LinearSlot.K: record.config.kv_heads}
    for number, layer in record.parts():
        at = "" if number == MODEL else f"blk.{number}."
        for weight, slots in _by_weight(layer).items():
            first = layer.linears[slots[0]]
            if slots == [LinearSlot.EMBEDDING, LinearSlot.HEAD]:  # tied
                yield Placement("token_embd.weight", weight)
                if family.head == "own":
                    yield Placement("output.weight", weight)
            else:
                name = LINEARS[slots[0]] if len(slots) == 1 else FUSED[frozenset(slots)]
                rows = _rows([layer.linears[slot] for slot in slots])
                if family.pairs and slots[0] in heads:
                    rows = as_pairs(first.shape[0], heads[slots[0]])
                yield Placement(f"{at}{name}.weight", weight, rows, first.transposed)
                if first.bias is not None:
                    yield Placement(f"{at}{name}.bias", first.bias, rows)
        for slot, norm in layer.norms.items():
            if norm.weight is not None:
                yield Placement(f"{at}{NORMS[slot]}.weight", norm.weight, one_plus=norm.one_plus)
            if norm.bias is not None:
                yield Placement(f"{at}{NORMS[slot]}.bias", norm.bias)


def as_pairs(rows: int, heads: int) -> NDArray[np.int64]:
    """Return row numbers of each head in the order 0, half, 1, half + 1, ...: what turned as halves turns as pairs."""
    return np.arange(rows, dtype=np.int64).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _by_weight(layer: LayerRecord) -> dict[str, list[LinearSlot]]:
    """Stored weight -> the projections that are parts of it, in the order of slots."""
    found: dict[str, list[LinearSlot]] = {}
    for slot in sorted(layer.linears):
        found.setdefault(layer.linears[slot].weight, []).append(slot)
    return found


def _rows(parts: list[LinearSource]) -> NDArray[np.int64] | None:
    """The order of rows that puts one part after the other; None where they stand so already."""
    if any(part.rows is None for part in parts):
        return None
    order = np.concatenate([part.rows.index() for part in parts if part.rows is not None])
    return None if bool((np.diff(order) == 1).all()) else order


def _reordered(weight: QuantizedTensor, rows: NDArray[np.int64]) -> QuantizedTensor:
    part: Any = slice(None) if weight.scheme.granularity == "tensor" else rows
    zero_point = None if weight.zero_point is None else weight.zero_point[part]
    return QuantizedTensor(weight.scheme, weight.codes[rows], weight.scale[part], zero_point)
