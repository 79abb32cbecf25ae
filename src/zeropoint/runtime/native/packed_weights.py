"""Packing a model for the native decoder: matrices in the kernels' layout, biases and norm weights in float32.

`pack_stream` packs stored weights one at a time, `collect` gathers the results in a `PackedWeights`, and
`PackedWeights.decoder` builds the native decoder from them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, SchemeError, UnsupportedError
from zeropoint.models.spec import LinearSource, ModelSpec, Rows
from zeropoint.runtime.native.library import Decoder, pack
from zeropoint.runtime.native.library import Weight as PackedMatrix
from zeropoint.values.arrays import Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.qtensor import Weight as StoredWeight

#: Key of a packed matrix: (stored name, rows), where rows None means the whole matrix. A tied output head has the
#: same key as the embedding, so the two share one packed matrix.
Key = tuple[str, Rows | None]


@dataclass(slots=True)
class PackedWeights:
    """The packed matrices of a model by (stored name, rows), and its float32 vectors by stored name."""

    weights: dict[Key, PackedMatrix] = field(default_factory=dict)
    vectors: dict[str, Floats] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        return sum(w.nbytes for w in self.weights.values()) + sum(v.nbytes for v in self.vectors.values())

    def add(self, packed: Packed) -> None:
        if isinstance(packed.value, PackedMatrix):
            self.weights[packed.name, packed.rows] = packed.value
        else:
            self.vectors[packed.name] = packed.value

    def decoder(self, spec: ModelSpec) -> Decoder:
        """Build the native decoder of the model that `spec` describes.

        Raises `ArtifactError` if a matrix or vector is missing, `SchemeError` if one has the wrong shape, and
        `UnsupportedError` if the C++ decoder does not support a part of the model.
        """
        check_vectors(spec, self.vectors)
        weights = {}
        for number, slot, source in spec.linears():
            key = (source.weight, source.rows)
            if key not in self.weights:
                raise ArtifactError(f"the model lacks the weight {source.weight}, which its config asks for")
            weights[number, slot] = self.weights[key]
        return Decoder(spec, weights, self.vectors)


@dataclass(frozen=True, slots=True, eq=False)
class Packed:
    """A packed matrix or a float32 vector. `rows`: which rows of the stored matrix; None: all rows, or a vector."""

    name: str
    rows: Rows | None
    value: PackedMatrix | Floats


def collect(packed: Iterable[Packed]) -> PackedWeights:
    """Gather all matrices and vectors of `packed` in memory."""
    packed_weights = PackedWeights()
    for item in packed:
        packed_weights.add(item)
    return packed_weights


def pack_stream(spec: ModelSpec, stream: Iterable[tuple[str, StoredWeight]]) -> Iterator[Packed]:
    """Yield the packed matrices and float32 vectors of a model, in the order of `stream`.

    A fused matrix (such as query, key and value in one) yields one `Packed` per projection. Only one weight of the
    stream is alive at a time. Raises `UnsupportedError` if the stream has a weight that `spec` does not name, or one
    whose format the kernels do not support; `ArtifactError` if a weight does not have the shape that the config asks
    for, or a vector holds NaN or infinite values.
    """
    matrices: dict[str, dict[Rows | None, LinearSource]] = defaultdict(dict)
    for _, _, source in spec.linears():
        matrices[source.weight][source.rows] = source
    vector_names = spec.names()
    for name, weight in stream:
        if name in matrices:
            for rows, matrix in _cut(name, weight, matrices[name]):
                yield Packed(name, rows, pack(matrix))
        elif name in vector_names:
            yield Packed(name, None, _vector(name, weight))
        else:
            raise UnsupportedError(
                f"the model has the weight {name}, which the native engine does not know in its family"
            )


def _cut(
    name: str, weight: StoredWeight, sources: Mapping[Rows | None, LinearSource]
) -> Iterator[tuple[Rows | None, StoredWeight]]:
    """Yield `(rows, matrix [out, in])` for each projection that is stored in the weight `name`.

    `sources` holds these projections. A projection's key is the rows of the weight that form it (None: all rows).
    Raises `ArtifactError` if the weight is no matrix, has another number of columns than the config says, or not as
    many rows as its projections have together.
    """
    first = next(iter(sources.values()))
    if not isinstance(weight, QuantizedTensor):
        if weight.ndim != 2:
            raise ArtifactError(f"{name} must be a matrix, not of shape {weight.shape}")
        weight = weight.T if first.transposed else weight
    height = max(first.shape[0] if rows is None else int(rows.index().max()) + 1 for rows in sources)
    if tuple(weight.shape) != (height, first.shape[1]):
        raise ArtifactError(
            f"{name} has the shape {tuple(weight.shape)}, and the config asks for {(height, first.shape[1])}"
        )
    for rows in sources:
        yield rows, weight if rows is None else take_rows(weight, rows)


def take_rows(weight: StoredWeight, rows: Rows) -> StoredWeight:
    """Return the given rows of a weight `[out, in]`, with their scales and zero_points if it is quantized."""
    if not isinstance(weight, QuantizedTensor):
        return weight[rows.index()]
    if rows.blocks == 1:
        return weight.rows(rows.start, rows.start + rows.count)
    index = rows.index()
    per_row = slice(None) if weight.scheme.granularity == "tensor" else index
    zero_point = None if weight.zero_point is None else weight.zero_point[per_row]
    return QuantizedTensor(weight.scheme, weight.codes[index], weight.scale[per_row], zero_point)


def _vector(name: str, weight: StoredWeight) -> Floats:
    # numpy reports the kind of ml_dtypes' bfloat16 as V
    if isinstance(weight, QuantizedTensor) or weight.ndim != 1 or weight.dtype.kind not in "fV":
        raise ArtifactError(f"{name} must be a vector of floats")
    values: NDArray[Any] = np.ascontiguousarray(weight, np.float32)
    if not np.isfinite(values).all():
        raise ArtifactError(f"{name} holds NaN or infinite values")
    return values


def check_vectors(spec: ModelSpec, vectors: Mapping[str, Floats]) -> None:
    """Check that every bias and norm weight of the model spec is present and has the right length.

    The C++ library reads these vectors without checking their lengths. Raises `ArtifactError` if a vector is missing,
    `SchemeError` if its length is wrong.
    """
    sizes: dict[str, int] = {}
    for _, _, linear in spec.linears():
        if linear.bias is not None:
            end = linear.shape[0] if linear.rows is None else int(linear.rows.index().max()) + 1
            sizes[linear.bias] = max(end, sizes.get(linear.bias, 0))
    for _, _, norm in spec.norms():
        sizes.update({name: norm.size for name in (norm.weight, norm.bias) if name is not None})
    for name, size in sizes.items():
        if name not in vectors:
            raise ArtifactError(f"the model lacks the vector {name}, which its config asks for")
        if vectors[name].shape != (size,):
            raise SchemeError(
                f"{name} has the shape {vectors[name].shape}, and the config asks for {(size,)}"
            )
