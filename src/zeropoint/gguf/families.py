"""Model families as llama.cpp names and computes them, from the same record that the native engine runs.

`models.families.derive` reads config.json strictly and says what a model computes; a `Family` says what
llama.cpp's graph of that name computes. Where the two differ, the difference is a named problem. Tensor names come
from the `gguf` package's own map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFWriter, RopeScalingType, get_tensor_name_map
from numpy.typing import NDArray

from zeropoint.errors import UnsupportedError
from zeropoint.gguf.superblocks import Storable, SuperTensor
from zeropoint.models.config import Config
from zeropoint.models.families import derive
from zeropoint.models.record import (
    Activation,
    DecoderConfig,
    DecoderRecord,
    LinearSlot,
    NormKind,
    NormSlot,
    Rope,
)
from zeropoint.models.rope import RopeParameters, read_rope
from zeropoint.qtensor import QuantizedTensor, Weight

NO_BIAS: frozenset[LinearSlot] = frozenset()
QKV = frozenset({LinearSlot.Q, LinearSlot.K, LinearSlot.V})
EVERY_LINEAR = frozenset({*QKV, LinearSlot.O, LinearSlot.GATE, LinearSlot.UP, LinearSlot.DOWN})
PLAIN_NORMS = frozenset({NormSlot.ATTENTION, NormSlot.MLP, NormSlot.FINAL})

#: Frequencies by which llama.cpp divides the plain ones; only its Llama graph reads them.
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True, slots=True)
class Family:
    """What llama.cpp computes for one architecture.

    `pairs`: channels 2i and 2i + 1 of a head turn together, where transformers turns i and i + half, so the rows of
    the query and key projections are stored in another order. `factors`: it reads `ROPE_FACTORS`.
    """

    arch: MODEL_ARCH
    biases: frozenset[LinearSlot] = NO_BIAS
    norms: frozenset[NormSlot] = PLAIN_NORMS
    norm: NormKind = NormKind.RMS
    activation: Activation = Activation.SILU
    gated: bool = True
    rope: Rope = Rope.HALVES
    pairs: bool = False
    factors: bool = False
    scaled_embedding: bool = False


LLAMA = Family(MODEL_ARCH.LLAMA, biases=EVERY_LINEAR, pairs=True, factors=True)

#: config.json's model_type -> family.
FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": Family(MODEL_ARCH.QWEN2, biases=QKV),
    "qwen3": Family(MODEL_ARCH.QWEN3, norms=PLAIN_NORMS | {NormSlot.Q, NormSlot.K}),
    "gemma": Family(MODEL_ARCH.GEMMA, activation=Activation.GELU_TANH, scaled_embedding=True),
    "gpt2": Family(
        MODEL_ARCH.GPT2,
        biases=EVERY_LINEAR,
        norm=NormKind.LAYER,
        activation=Activation.GELU_TANH,
        gated=False,
        rope=Rope.NONE,
    ),
}


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
        """The weight in the file's order. Vectors become float32."""
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
        """The inverse of `place`: the file's weight in the artifact's order."""
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


@dataclass(frozen=True, slots=True, eq=False)
class Description:
    """A model in GGUF's words: `placements` of its tensors, and tensors that GGUF wants beside them."""

    family: Family
    record: DecoderRecord
    rope: RopeParameters | None
    placements: tuple[Placement, ...]
    extras: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return str(MODEL_ARCH_NAMES[self.family.arch])

    def write_metadata(self, writer: GGUFWriter) -> None:
        """The hyperparameters that llama.cpp reads."""
        config = self.record.config
        writer.add_context_length(config.max_positions)
        writer.add_embedding_length(config.hidden)
        writer.add_block_count(config.layers)
        writer.add_feed_forward_length(config.intermediate)
        writer.add_vocab_size(config.vocab)
        writer.add_head_count(config.heads)
        writer.add_head_count_kv(config.kv_heads)
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
        if config.norm == NormKind.RMS:
            writer.add_layer_norm_rms_eps(config.norm_eps)
        else:
            writer.add_layer_norm_eps(config.norm_eps)
        if self.rope is not None:
            _write_rope(writer, self.rope, config)


def describe(config: Mapping[str, Any]) -> tuple[Description | None, list[str]]:
    """The model that a config.json describes, in GGUF's words, and why it cannot be: one of the two is empty."""
    family = FAMILIES.get(str(config.get("model_type")))
    if family is None:
        known = ", ".join(FAMILIES)
        return None, [f"no GGUF architecture is known here for {config.get('model_type')!r}: {known} are"]
    try:
        record = derive(config)
    except UnsupportedError as cause:
        return None, [str(cause)]
    rope = None
    if record.config.rope != Rope.NONE:
        rope = read_rope(Config(config), max_positions=record.config.max_positions)
    problems = [*_differences(family, record), *_rope_problems(family, rope)]
    if problems:
        return None, problems
    extras = {}
    if rope is not None and rope.kind == "llama3":
        extras[ROPE_FACTORS] = _rope_factors(rope, record.config.head_dim)
    return Description(family, record, rope, tuple(_placements(family, record)), extras), []


def _differences(family: Family, record: DecoderRecord) -> Iterator[str]:
    """What the model computes otherwise than llama.cpp does for its family."""
    config, name = record.config, MODEL_ARCH_NAMES[family.arch]
    expected: dict[str, Any] = {
        "norm": family.norm,
        "activation": family.activation,
        "gated": family.gated,
        "rope": family.rope,
        "parallel": False,
        "embedding_scale": math.sqrt(config.hidden) if family.scaled_embedding else 1.0,
        "residual_scale": 1.0,
        "logit_scale": 1.0,
        "attention_scale": config.head_dim**-0.5,
        "attention_softcap": 0.0,
        "logit_softcap": 0.0,
        "rotary_dim": config.head_dim if family.rope != Rope.NONE else config.rotary_dim,
    }
    for key, wanted in expected.items():
        value = getattr(config, key)
        if value != wanted and not (isinstance(wanted, float) and math.isclose(value, wanted, rel_tol=1e-6)):
            yield f"llama.cpp's {name} has {key} = {_shown(wanted)}, this model {_shown(value)}"
    narrow = [layer.window for layer in record.layers if 0 < layer.window < config.max_positions]
    if narrow:
        sees = f"{narrow[0]} positions in {len(narrow)} layers"
        yield f"llama.cpp's {name} attends to the whole context, this model to {sees}"
    biased = sorted({slot.name for _, slot, s in record.linears() if s.bias and slot not in family.biases})
    if biased:
        yield f"llama.cpp's {name} has no bias for {', '.join(biased)}"
    normed = sorted({slot.name for _, slot, _ in record.norms() if slot not in family.norms})
    if normed:
        yield f"llama.cpp's {name} has no norm {', '.join(normed)}"


def _shown(value: Any) -> str:
    return getattr(value, "name", None) or (f"{value:.6g}" if isinstance(value, float) else str(value))


def _rope_problems(family: Family, rope: RopeParameters | None) -> Iterator[str]:
    if rope is None:
        return
    name = MODEL_ARCH_NAMES[family.arch]
    if rope.kind == "llama3" and not family.factors:
        yield f"llama.cpp's {name} cannot scale its rotation as llama3 does"
    unusual = set(rope.numbers) - {"factor", "original_max_position_embeddings"}
    if rope.kind == "yarn" and unusual:
        yield f"llama.cpp fixes yarn's {', '.join(sorted(unusual))}, which this model sets"


def _write_rope(writer: GGUFWriter, rope: RopeParameters, config: DecoderConfig) -> None:
    writer.add_rope_dimension_count(config.rotary_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.numbers["factor"])
    elif rope.kind == "yarn":
        writer.add_rope_scaling_type(RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope.numbers["factor"])
        writer.add_rope_scaling_orig_ctx_len(int(rope.numbers["original_max_position_embeddings"]))


def _rope_factors(rope: RopeParameters, head_dim: int) -> NDArray[np.float32]:
    plain = RopeParameters({"rope_theta": rope.theta}, max_positions=1).table(head_dim)
    return (plain.inverse_frequency / rope.table(head_dim).inverse_frequency).astype(np.float32)


def _placements(family: Family, record: DecoderRecord) -> Iterator[Placement]:
    """One for each stored tensor: a tied head, and the parts of a fused projection, are one tensor."""
    names = get_tensor_name_map(family.arch, record.config.layers)
    seen: set[str] = set()

    def place(source: str | None, **how: Any) -> Iterator[Placement]:
        if source is None or source in seen:
            return
        seen.add(source)
        name = names.get_name(source, try_suffixes=(".weight", ".bias"))
        assert name is not None, source  # the maps cover the families above
        yield Placement(name, source, **how)

    turning = {LinearSlot.Q: record.config.heads, LinearSlot.K: record.config.kv_heads}
    for _, slot, linear in record.linears():
        rows = _pairs(linear.shape[0], turning[slot]) if family.pairs and slot in turning else None
        yield from place(linear.weight, rows=rows, transposed=linear.transposed)
        yield from place(linear.bias, rows=rows)
    for _, _, norm in record.norms():
        yield from place(norm.weight, one_plus=norm.one_plus)
        yield from place(norm.bias)


def _pairs(rows: int, heads: int) -> NDArray[np.int64]:
    """Row numbers of each head in the order 0, half, 1, half + 1, ...: what turned as halves turns as pairs."""
    return np.arange(rows, dtype=np.int64).reshape(heads, 2, -1).swapaxes(1, 2).ravel()


def _reordered(weight: QuantizedTensor, rows: NDArray[np.int64]) -> QuantizedTensor:
    part: Any = slice(None) if weight.scheme.granularity == "tensor" else rows
    zero_point = None if weight.zero_point is None else weight.zero_point[part]
    return QuantizedTensor(weight.scheme, weight.codes[rows], weight.scale[part], zero_point)
