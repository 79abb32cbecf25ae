"""The GGUF name, row order and orientation of each tensor of a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.gguf.architecture.families import FUSED, LINEARS, NORMS, Family
from zeropoint.gguf.types.superblocks import Storable, SuperTensor
from zeropoint.models.spec import MODEL, LayerRecord, LinearSlot, LinearSource, ModelSpec
from zeropoint.values.qtensor import QuantizedTensor, Weight


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """How a checkpoint tensor becomes a GGUF tensor.

    - `name`: the tensor's name in the GGUF file;
    - `source`: the tensor's name in the checkpoint;
    - `rows`: row i of the file is row `rows[i]` of the checkpoint; None for the same order;
    - `transposed`: the checkpoint stores the unquantized weight as `[in, out]`;
    - `one_plus`: a norm that computes with `1 + weight`; llama.cpp expects the sum.
    """

    name: str
    source: str
    rows: NDArray[np.int64] | None = None
    transposed: bool = False
    one_plus: bool = False

    def place(self, weight: Storable) -> Storable:
        """Return a checkpoint weight as the GGUF file stores it. Vectors become float32."""
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
        """Return a weight from the GGUF file as the checkpoint stores it: the inverse of `place`."""
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
    """Yield one placement for each tensor of the GGUF file.

    A fused projection is one tensor. A tied output head has no tensor of its own, unless llama.cpp requires one for the
    family: then the embedding is stored twice.
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
    """Return row indices that convert rotary halves to pairs: within each head, rows 0, half, 1, half + 1, ..."""
    return np.arange(rows, dtype=np.int64).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _by_weight(layer: LayerRecord) -> dict[str, list[LinearSlot]]:
    """Map each stored weight to its projections, in slot order. A fused weight has several."""
    slots: dict[str, list[LinearSlot]] = {}
    for slot in sorted(layer.linears):
        slots.setdefault(layer.linears[slot].weight, []).append(slot)
    return slots


def _rows(parts: list[LinearSource]) -> NDArray[np.int64] | None:
    """Return row indices that put the projections one after another; None if the weight already has that order."""
    if any(part.rows is None for part in parts):
        return None
    order = np.concatenate([part.rows.index() for part in parts if part.rows is not None])
    return None if bool((np.diff(order) == 1).all()) else order


def _reordered(weight: QuantizedTensor, rows: NDArray[np.int64]) -> QuantizedTensor:
    """Return a quantized weight with its rows in the order `rows`."""
    part: Any = slice(None) if weight.scheme.granularity == "tensor" else rows
    zero_point = None if weight.zero_point is None else weight.zero_point[part]
    return QuantizedTensor(weight.scheme, weight.codes[rows], weight.scale[part], zero_point)
