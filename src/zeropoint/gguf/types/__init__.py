"""The number types of a GGUF file: one table of names, ids and block sizes, and the bytes of a weight in each type.

`blocks.py` reads and writes the weights that a `Scheme` describes: Q8_0, Q5_0, Q4_0, and Q4_1 if its minima are integer
multiples of its scales. `superblocks.py` writes the others: K-quants, Q5_1, and Q4_1 with any minima. In a file, these
and types that are not in `TYPES` are read as floats (`GgufFile.floats`). `mixes.py` says which type each matrix of a
model gets. How codes are chosen on the grid of a `SuperTensor` is an algorithm: `algorithms/_gguf_grids.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from zeropoint.dtypes import BY_STORED
from zeropoint.errors import SchemeError
from zeropoint.gguf.types import blocks, superblocks
from zeropoint.gguf.types.superblocks import Format, Storable, SuperTensor
from zeropoint.values.arrays import Bytes, Floats
from zeropoint.values.qtensor import QuantizedTensor, Weight
from zeropoint.values.scheme import Scheme, parse

Kind = GGMLQuantizationType
"""A type's name and id in the file: `Kind.Q4_K.name`, `Kind.Q4_K.value`."""


@dataclass(frozen=True, slots=True)
class NumberType:
    """One number type.

    - `kind`: its name and id;
    - `file_type`: the header's number of a file whose matrices mostly have this type;
    - `dtype`: a float type's numpy dtype;
    - `scheme`: the scheme of the codes; of a type in `superblocks.FORMATS`, the scheme with its code range and group
      size, and one float32 scale per group;
    - `grid`: the parameters of a type that a `SuperTensor` can have.
    """

    kind: GGMLQuantizationType
    file_type: LlamaFileType
    dtype: np.dtype[np.generic] | None = None
    scheme: Scheme | None = None
    grid: Format | None = None

    @property
    def block(self) -> int:
        """Return the number of weights in a block; 1 for a float type."""
        return int(GGML_QUANT_SIZES[self.kind][0])

    @property
    def nbytes(self) -> int:
        """Return the bytes of a block."""
        return int(GGML_QUANT_SIZES[self.kind][1])


def _float(kind: GGMLQuantizationType, file_type: LlamaFileType) -> NumberType:
    """Return the entry of a float type. Its name is that of safetensors files too."""
    return NumberType(kind, file_type, dtype=BY_STORED[kind.name].numpy())


def _grid(kind: GGMLQuantizationType, file_type: LlamaFileType) -> NumberType:
    """Return the entry of a type in `superblocks.FORMATS`."""
    form = superblocks.FORMATS[kind]
    return NumberType(kind, file_type, scheme=form.scheme, grid=form)


#: Every type that Zeropoint writes, by its id. It reads floats and the types in `blocks.DECODERS` without rounding.
TYPES: Mapping[GGMLQuantizationType, NumberType] = {
    each.kind: each
    for each in (
        _float(Kind.F32, LlamaFileType.ALL_F32),
        _float(Kind.F16, LlamaFileType.MOSTLY_F16),
        _float(Kind.BF16, LlamaFileType.MOSTLY_BF16),
        NumberType(Kind.Q8_0, LlamaFileType.MOSTLY_Q8_0, scheme=parse("int8:g32:sym:fp16")),
        NumberType(Kind.Q5_0, LlamaFileType.MOSTLY_Q5_0, scheme=parse("int5:g32:sym:fp16")),
        NumberType(Kind.Q4_0, LlamaFileType.MOSTLY_Q4_0, scheme=parse("int4:g32:sym:fp16")),
        _grid(Kind.Q4_1, LlamaFileType.MOSTLY_Q4_1),
        _grid(Kind.Q5_1, LlamaFileType.MOSTLY_Q5_1),
        _grid(Kind.Q3_K, LlamaFileType.MOSTLY_Q3_K_M),
        _grid(Kind.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
        _grid(Kind.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
        _grid(Kind.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    )
}

_BY_DTYPE = {each.dtype: each.kind for each in TYPES.values() if each.dtype is not None}


def is_float(kind: GGMLQuantizationType) -> bool:
    """Return whether a type is F32, F16 or BF16."""
    return kind in TYPES and TYPES[kind].dtype is not None


def choose(weight: Storable) -> GGMLQuantizationType:
    """Return the narrowest type that holds a weight exactly. Raises `SchemeError`, with the reason, if none does."""
    if isinstance(weight, SuperTensor):
        return weight.kind
    if isinstance(weight, QuantizedTensor):
        return blocks.choose(weight)
    if weight.dtype not in _BY_DTYPE:
        raise SchemeError(f"GGUF weights are not of type {weight.dtype}")
    return _BY_DTYPE[weight.dtype]


def encode(weight: Storable, kind: GGMLQuantizationType) -> Bytes:
    """Return the bytes of a weight in a file. `kind` comes from `choose`."""
    if isinstance(weight, QuantizedTensor):
        return blocks.encode(weight, kind)
    if isinstance(weight, SuperTensor):
        return superblocks.encode(weight)
    return weight.reshape(-1).view(np.uint8)


def decode(raw: Bytes, kind: GGMLQuantizationType) -> Weight:
    """Return the weight whose rows are the bytes `raw`, without rounding: a float array, or codes and scales.

    Raises `SchemeError` if no `Scheme` describes the blocks.
    """
    entry = TYPES.get(kind)
    return blocks.decode(raw, kind) if entry is None or entry.dtype is None else raw.view(entry.dtype)


def nbytes(shape: Iterable[int], kind: GGMLQuantizationType) -> int:
    """Return the bytes of a tensor. `kind` may be any type of ggml; whole blocks must make up the shape's last axis."""
    block, size = GGML_QUANT_SIZES[kind]
    return prod(shape) // int(block) * int(size)


def floats(weight: Storable) -> Floats:
    """Return a weight's values as float32."""
    return weight.astype(np.float32) if isinstance(weight, np.ndarray) else weight.dequantize()
