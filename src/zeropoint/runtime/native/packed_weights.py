"""What a decoder is filled with: packed weights and float vectors, made from a stream one weight at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.models.spec import LinearSource, ModelSpec, Rows
from zeropoint.runtime.native.library import Decoder, Floats, Weight, pack
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.qtensor import Weight as Stored

#: A packed weight's identity: the stored name, and which rows of it. A tied head shares its embedding's.
Part = tuple[str, Rows | None]


@dataclass(slots=True)
class PackedWeights:
    """Everything a record needs, by part and by name."""

    weights: dict[Part, Weight] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for w in self.weights.values()) + sum(v.nbytes for v in self.vectors.values())

    def add(self, packed: Packed) -> None:
        if isinstance(packed.value, Weight):
            self.weights[packed.name, packed.rows] = packed.value
        else:
            self.vectors[packed.name] = packed.value

    def decoder(self, record: ModelSpec) -> Decoder:
        """Raises `ArtifactError` for a part that is missing, `SchemeError` for one that does not fit."""
        check_vectors(record, self.vectors)
        weights = {}
        for number, slot, source in record.linears():
            part = (source.weight, source.rows)
            if part not in self.weights:
                raise ArtifactError(f"the model lacks the weight {source.weight}, which its config asks for")
            weights[number, slot] = self.weights[part]
        return Decoder(record, weights, self.vectors)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """One packed part of a weight, or (without rows) one vector."""

    name: str
    rows: Rows | None
    value: Weight | Floats


def collect(packed: Iterable[Packed]) -> PackedWeights:
    """All of it, in memory."""
    packed_weights = PackedWeights()
    for part in packed:
        packed_weights.add(part)
    return packed_weights


def pack_stream(record: ModelSpec, stream: Iterable[tuple[str, Stored]]) -> Iterator[Packed]:
    """Each part of each weight as it arrives, packed, and each vector in float32.

    Only one weight of the stream is alive at a time. Raises `UnsupportedError` for a weight that the record has
    no place for, or of a kind that the kernels do not take; `ArtifactError` for one of another shape.
    """
    places: dict[str, dict[Rows | None, LinearSource]] = defaultdict(dict)
    for _, _, source in record.linears():
        places[source.weight][source.rows] = source
    wanted = record.names()
    for name, weight in stream:
        if name in places:
            for rows, part in _parts(name, weight, places[name]):
                yield Packed(name, rows, pack(part))
        elif name in wanted:
            yield Packed(name, None, _vector(name, weight))
        else:
            raise UnsupportedError(
                f"the model has the weight {name}, which the native engine does not know in its family"
            )


def _parts(
    name: str, weight: Stored, sources: Mapping[Rows | None, LinearSource]
) -> Iterator[tuple[Rows | None, Stored]]:
    first = next(iter(sources.values()))
    if not isinstance(weight, QuantizedTensor):
        if weight.ndim != 2:
            raise ArtifactError(f"{name} must be a matrix, not of shape {weight.shape}")
        weight = weight.T if first.transposed else weight
    last = max(first.shape[0] if rows is None else int(rows.index().max()) + 1 for rows in sources)
    if tuple(weight.shape) != (last, first.shape[1]):
        raise ArtifactError(
            f"{name} has the shape {tuple(weight.shape)}, and the config asks for {(last, first.shape[1])}"
        )
    for rows in sources:
        yield rows, weight if rows is None else take_rows(weight, rows)


def take_rows(weight: Stored, rows: Rows) -> Stored:
    """Some rows of a weight."""
    if not isinstance(weight, QuantizedTensor):
        return weight[rows.index()]
    if rows.blocks == 1:
        return weight.rows(rows.start, rows.start + rows.count)
    index = rows.index()
    per_row = slice(None) if weight.scheme.granularity == "tensor" else index
    zero_point = None if weight.zero_point is None else weight.zero_point[per_row]
    return QuantizedTensor(weight.scheme, weight.codes[index], weight.scale[per_row], zero_point)


def _vector(name: str, weight: Stored) -> Floats:
    if isinstance(weight, QuantizedTensor) or weight.ndim != 1 or weight.dtype.kind not in "fV":
        raise ArtifactError(f"{name} must be a vector of floats")
    values: NDArray[Any] = np.ascontiguousarray(weight, np.float32)
    if not np.isfinite(values).all():
        raise ArtifactError(f"{name} holds NaN or infinite values")
    return values


def check_vectors(record: ModelSpec, vectors: Mapping[str, Floats]) -> None:
    """Every bias and norm is there and of its length: the library trusts these lengths."""
    sizes: dict[str, int] = {}
    for _, _, linear in record.linears():
        if linear.bias is not None:
            end = linear.shape[0] if linear.rows is None else int(linear.rows.index().max()) + 1
            sizes[linear.bias] = max(end, sizes.get(linear.bias, 0))
    for _, _, norm in record.norms():
        sizes.update({name: norm.size for name in (norm.weight, norm.bias) if name is not None})
    for name, size in sizes.items():
        if name not in vectors:
            raise ArtifactError(f"the model lacks the vector {name}, which its config asks for")
        if vectors[name].shape != (size,):
            raise SchemeError(
                f"{name} has the shape {vectors[name].shape}, and the config asks for {(size,)}"
            )
