"""What the C++ decoder is told about a model: plain data, derived from config.json.

`DecoderConfig` is `zp_decoder_config` of native/include/zeropoint.h, which documents the mathematics; the
sources say which stored tensors fill which slot.
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
    RMS = 0
    LAYER = 1


class Rope(IntEnum):
    """Which channels of a head turn together."""

    NONE = 0
    HALVES = 1
    PAIRS = 2


class Activation(IntEnum):
    SILU = 0
    GELU = 1
    GELU_TANH = 2
    RELU = 3


class LinearSlot(IntEnum):
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
    ATTENTION = 0
    POST_ATTENTION = 1
    MLP = 2
    POST_MLP = 3
    Q = 4
    K = 5
    EMBEDDING = 6
    FINAL = 7


#: The layer number of what belongs to the whole model.
MODEL = -1


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """`zp_decoder_config`: the same fields in the same order."""

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
    """Some rows of a fused weight: `blocks` runs of `count` rows, the first at `start`, each beginning `stride`
    rows after the one before."""

    start: int
    count: int
    stride: int = 0
    blocks: int = 1

    @property
    def total(self) -> int:
        return self.count * self.blocks

    def index(self) -> NDArray[np.int64]:
        """The row numbers `[total]`."""
        first = self.start + self.stride * np.arange(self.blocks, dtype=np.int64)
        return (first[:, None] + np.arange(self.count, dtype=np.int64)).ravel()


@dataclass(frozen=True, slots=True)
class LinearSource:
    """A weight `[out, in]` (and bias `[out]`) by its stored name: `rows` of it, or all.

    `transposed`: the model's own code holds it as `[in, out]`, and so does a checkpoint, or an artifact that
    keeps it unquantized. `shape` is `[out, in]` of the part.
    """

    weight: str
    shape: tuple[int, int]
    bias: str | None = None
    rows: Rows | None = None
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class NormSource:
    """A norm's vectors by their stored names. No `weight`: ones. `one_plus`: the stored weight lacks the 1."""

    size: int
    weight: str | None = None
    bias: str | None = None
    one_plus: bool = False


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One block, or (layer `MODEL`) what stands before and after the blocks.

    `window`: how many positions back attention sees, itself included; 0: all. `table`: which rotation.
    """

    linears: Mapping[LinearSlot, LinearSource] = field(default_factory=dict)
    norms: Mapping[NormSlot, NormSource] = field(default_factory=dict)
    window: int = 0
    table: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RopeTable:
    """Rotation angles are `position * inverse_frequency` (float32 `[rotary_dim / 2]`); cosine and sine are
    multiplied by `scale`. `parameters` are those of config.json that the table was computed from, if any. The model
    turns so in texts of up to `positions` tokens, and otherwise beyond; None: always."""

    inverse_frequency: NDArray[np.float32]
    scale: float = 1.0
    parameters: RopeParameters | None = None
    positions: int | None = None


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A whole model. `aliases`: other names under which checkpoints store a weight."""

    config: DecoderConfig
    layers: tuple[LayerRecord, ...]
    model: LayerRecord
    ropes: tuple[RopeTable, ...] = ()
    prefix: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)

    def parts(self) -> Iterator[tuple[int, LayerRecord]]:
        """Every layer with its number, the model's own parts first."""
        yield MODEL, self.model
        yield from enumerate(self.layers)

    def linears(self) -> Iterator[tuple[int, LinearSlot, LinearSource]]:
        for number, layer in self.parts():
            for slot, source in layer.linears.items():
                yield number, slot, source

    def norms(self) -> Iterator[tuple[int, NormSlot, NormSource]]:
        for number, layer in self.parts():
            for slot, source in layer.norms.items():
                yield number, slot, source

    @property
    def embedding(self) -> str:
        """The stored name of the token embedding."""
        return self.model.linears[LinearSlot.EMBEDDING].weight

    @property
    def head(self) -> str:
        """The stored name of the output head: the embedding's where the two are one."""
        return self.model.linears[LinearSlot.HEAD].weight

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return each stored tensor that the record needs, in the order of the blocks, with the shape in which a
        checkpoint stores it."""
        found: dict[str, tuple[int, ...]] = {}
        for _, _, source in self.linears():
            last = source.shape[0] if source.rows is None else int(source.rows.index().max()) + 1
            rows = max(last, found.get(source.weight, (0,))[0])  # of a fused weight, that of its last part
            found[source.weight] = (rows, source.shape[1])
            if source.bias is not None:
                found[source.bias] = (rows,)
        transposed = {source.weight for _, _, source in self.linears() if source.transposed}
        found |= {name: found[name][::-1] for name in transposed}
        for _, _, norm in self.norms():
            found |= {name: (norm.size,) for name in (norm.weight, norm.bias) if name is not None}
        return found

    def names(self) -> frozenset[str]:
        """The stored tensors that the record needs."""
        linears = [(source.weight, source.bias) for _, _, source in self.linears()]
        norms = [(source.weight, source.bias) for _, _, source in self.norms()]
        return frozenset(name for pair in linears + norms for name in pair if name is not None)
