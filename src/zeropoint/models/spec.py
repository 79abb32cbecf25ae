"""`ModelSpec`: the description of a model that the C++ decoder runs, derived from config.json.

`DecoderConfig` mirrors `zp_decoder_config` of native/include/zeropoint.h, which documents the mathematics.
`LinearSource` and `NormSource` say which stored tensors fill which slot of the decoder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from zeropoint.models.rope import RopeParameters


class NormKind(IntEnum):
    """The kind of all norms of a model: RMS norm or layer norm."""

    RMS = 0
    LAYER = 1


class Rope(IntEnum):
    """Which channels of a head rotate together: i and i + rotary_dim / 2 (HALVES), or 2i and 2i + 1 (PAIRS)."""

    NONE = 0
    HALVES = 1
    PAIRS = 2


class Activation(IntEnum):
    """The activation function of the MLP."""

    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3


class LinearSlot(IntEnum):
    """The place of a matrix in the decoder; from EMBEDDING on, outside the transformer blocks."""

    Q = 0
    K = 1
    V = 2
    O = 3  # noqa: E741 -- the literature's name of the output projection
    GATE = 4
    UP = 5
    DOWN = 6
    EMBEDDING = 7
    POSITIONS = 8
    HEAD = 9


class NormSlot(IntEnum):
    """The place of a norm in the decoder; from EMBEDDING on, outside the transformer blocks."""

    ATTENTION = 0
    POST_ATTENTION = 1
    MLP = 2
    POST_MLP = 3
    Q = 4
    K = 5
    EMBEDDING = 6
    FINAL = 7


#: The layer number of the parts outside the transformer blocks: embeddings, final norm, output head.
MODEL = -1


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """The sizes and constants of a decoder: the fields of `zp_decoder_config`, in the same order."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int
    norm: NormKind
    norm_eps: float
    rope: Rope
    rotary_dim: int
    activation: Activation
    gated: bool
    parallel: bool
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    attention_scale: float
    attention_softcap: float
    logit_softcap: float


@dataclass(frozen=True, slots=True)
class Rows:
    """A selection of rows of a fused matrix: `blocks` runs of `count` rows.

    The first run starts at row `start`; the next runs start `stride` rows apart.
    """

    start: int
    count: int
    stride: int = 0
    blocks: int = 1

    @property
    def total(self) -> int:
        """Return the number of selected rows."""
        return self.count * self.blocks

    def index(self) -> NDArray[np.int64]:
        """Return the selected row numbers, int64 `[total]`."""
        first = self.start + self.stride * np.arange(self.blocks, dtype=np.int64)
        return (first[:, None] + np.arange(self.count, dtype=np.int64)).ravel()


@dataclass(frozen=True, slots=True)
class LinearSource:
    """The stored tensors of a linear layer: the matrix `weight` and, if any, the vector `bias` `[out]`.

    `rows`: the rows of a fused matrix that belong to this layer, None for all. `shape` is `[out, in]` of those rows.
    `transposed`: checkpoints store the matrix as `[in, out]`, and so do artifacts that leave it unquantized.
    """

    weight: str
    shape: tuple[int, int]
    bias: str | None = None
    rows: Rows | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class NormSource:
    """The stored vectors of a norm of `size` channels.

    `weight` None: all ones. `one_plus`: the norm multiplies by 1 + the stored weight.
    """

    size: int
    weight: str | None = None
    bias: str | None = None
    one_plus: bool = False


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One transformer block, or (layer number `MODEL`) the parts outside the blocks.

    `window`: the number of positions that attention sees, the current one included; 0: all. `table`: index into
    `ModelSpec.ropes`.
    """

    linears: Mapping[LinearSlot, LinearSource] = field(default_factory=dict)
    norms: Mapping[NormSlot, NormSource] = field(default_factory=dict)
    window: int = 0
    table: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RopeTable:
    """The rotary embedding of some layers: angles are `position * inverse_frequency`, float32 `[rotary_dim / 2]`.

    Cosine and sine are multiplied by `scale`. `parameters`: the config.json parameters of the table, if any.
    `positions`: the longest text in tokens for which the table is valid; None: any length.
    """

    inverse_frequency: NDArray[np.float32]
    scale: float = 1.0
    parameters: RopeParameters | None = None
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The complete description of a model.

    `layers` are the transformer blocks, `model` the parts outside them, `ropes` the rotary tables. `prefix`: the start
    of tensor names (such as `model.`) that checkpoints without an output head leave out. `aliases`: tensor name -> the
    other name that checkpoints may use.
    """

    config: DecoderConfig
    layers: tuple[LayerRecord, ...]
    model: LayerRecord
    ropes: tuple[RopeTable, ...] = ()
    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[int, LayerRecord]]:
        """Yield (layer number, layer): first the parts outside the blocks (`MODEL`), then each block."""
        yield MODEL, self.model
        yield from enumerate(self.layers)

    def linears(self) -> Iterator[tuple[int, LinearSlot, LinearSource]]:
        """Yield (layer number, slot, source) of every linear layer."""
        for number, layer in self.parts():
            for slot, source in layer.linears.items():
                yield number, slot, source

    def norms(self) -> Iterator[tuple[int, NormSlot, NormSource]]:
        """Yield (layer number, slot, source) of every norm."""
        for number, layer in self.parts():
            for slot, source in layer.norms.items():
                yield number, slot, source

    @property
    def embedding(self) -> str:
        """Return the stored name of the token embedding."""
        return self.model.linears[LinearSlot.EMBEDDING].weight

    @property
    def head(self) -> str:
        """Return the stored name of the output head; that of the embedding if the head is tied."""
        return self.model.linears[LinearSlot.HEAD].weight

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return {stored name: shape in a checkpoint} of all tensors, first those of linear layers, then of norms."""
        sizes: dict[str, tuple[int, ...]] = {}
        for _, _, source in self.linears():
            last = source.shape[0] if source.rows is None else int(source.rows.index().max()) + 1
            # The shape is that of the stored matrix, which ends with the last row that any slot takes of it.
            rows = max(last, sizes.get(source.weight, (0,))[0])
            sizes[source.weight] = (rows, source.shape[1])
            if source.bias is not None:
                sizes[source.bias] = (rows,)
        transposed = {source.weight for _, _, source in self.linears() if source.transposed}
        sizes |= {name: sizes[name][::-1] for name in transposed}
        for _, _, norm in self.norms():
            sizes |= {name: (norm.size,) for name in (norm.weight, norm.bias) if name is not None}
        return sizes

    def names(self) -> frozenset[str]:
        """Return the stored names of all tensors of the model."""
        linears = [(source.weight, source.bias) for _, _, source in self.linears()]
        norms = [(source.weight, source.bias) for _, _, source in self.norms()]
        return frozenset(name for pair in linears + norms for name in pair if name is not None)
