"""The pieces that families are put together from: sizes, projections, norms, and the record around them.

Names of tensors are those of the transformers model, which are also an artifact's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeropoint.models.config import Config
from zeropoint.models.rope import RopeParameters
from zeropoint.models.spec import (
    Activation,
    DecoderConfig,
    LayerRecord,
    LinearSlot,
    LinearSource,
    ModelSpec,
    NormKind,
    NormSlot,
    NormSource,
    Rope,
    RopeTable,
    Rows,
)

Linears = dict[LinearSlot, LinearSource]
Norms = dict[NormSlot, NormSource]

ACTIVATIONS = {
    "silu": Activation.SILU,
    "swish": Activation.SILU,
    "gelu": Activation.GELU,
    "gelu_new": Activation.GELU_TANH,
    "gelu_pytorch_tanh": Activation.GELU_TANH,
    "gelu_fast": Activation.GELU_TANH,
    "relu": Activation.RELU,
}


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    max_positions: int

    @property
    def queries(self) -> int:
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        return self.kv_heads * self.head_dim


#: More blocks than any model has: a damaged config must not make a record of millions of parts.
MAX_LAYERS = 4096
MAX_HEAD_DIM = 4096


def read_shape(
    config: Config,
    *,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    intermediate: str | None = None,
    grouped: bool = True,
    own_head_dim: bool = True,
) -> Shape:
    """The sizes under the names that most configs use. `kv_heads` and `head_dim` are the family's defaults:
    without them as many as heads, and what hidden / heads gives. Not `grouped`: the family's code reads no
    `num_key_value_heads`; not `own_head_dim`: its heads always have hidden / heads channels."""
    heads, hidden = config.size("num_attention_heads"), config.size("hidden_size")
    if not own_head_dim:
        config.only("head_dim", hidden // heads)
    shape = Shape(
        layers=config.size("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=config.size("num_key_value_heads", kv_heads or heads) if grouped else heads,
        head_dim=config.size("head_dim", head_dim or hidden // heads or None),
        intermediate=config.size(intermediate or "intermediate_size"),
        vocab=config.size("vocab_size"),
        max_positions=config.size("max_position_embeddings"),
    )
    return check_shape(config, shape)


def check_shape(config: Config, shape: Shape) -> Shape:
    if shape.layers > MAX_LAYERS:
        config.refuse("num_hidden_layers", shape.layers)
    if shape.head_dim > MAX_HEAD_DIM:
        config.refuse("head_dim", shape.head_dim)
    if shape.heads % shape.kv_heads:
        config.refuse("num_key_value_heads", shape.kv_heads)
    return shape


def read_activation(config: Config, name: str = "hidden_act", default: str = "silu") -> Activation:
    value = config.get(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        config.refuse(name, value)
    return ACTIVATIONS[value]


def read_layer_types(config: Config, shape: Shape, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Whether each layer's attention slides; `default` says so of a layer number where the config does not."""
    given = config.get("layer_types")
    if given is None:
        return tuple(default(layer) for layer in range(shape.layers))
    known = ("full_attention", "sliding_attention")
    if not isinstance(given, list) or len(given) != shape.layers or any(kind not in known for kind in given):
        config.refuse("layer_types", given)
    return tuple(kind == "sliding_attention" for kind in given)


def read_window(config: Config, *, default: int | None) -> int:
    """How many positions back sliding attention sees; 0 where the config says null, or nothing and the family
    does not assume it."""
    if not config.has("sliding_window"):
        return default or 0
    return 0 if config.get("sliding_window") is None else config.size("sliding_window")


def read_qwen_windows(config: Config, shape: Shape) -> tuple[int, ...]:
    """Each layer's window: none, unless `use_sliding_window`, and then from `max_window_layers` on."""
    first = config.get("max_window_layers", 28)
    if type(first) is not int or first < 0:
        config.refuse("max_window_layers", first)
    used = config.flag("use_sliding_window", False)
    window = read_window(config, default=4096)
    window = window if used else 0
    slides = read_layer_types(config, shape, lambda layer: window > 0 and layer >= first)
    if any(slides) and not window:
        config.refuse("layer_types", "sliding_attention")
    return tuple(window if each else 0 for each in slides)


# -- projections ----------------------------------------------------------------------------------


def linear(
    path: str,
    shape: tuple[int, int],
    *,
    bias: bool = False,
    rows: Rows | None = None,
    transposed: bool = False,
) -> LinearSource:
    return LinearSource(f"{path}.weight", shape, f"{path}.bias" if bias else None, rows, transposed)


def attention(
    at: str, shape: Shape, *, bias: bool = False, out_bias: bool | None = None, out: str = "o_proj"
) -> Linears:
    """Four separate projections under the path `at`; `out_bias` where it differs from the others' bias."""
    return {
        LinearSlot.Q: linear(f"{at}.q_proj", (shape.queries, shape.hidden), bias=bias),
        LinearSlot.K: linear(f"{at}.k_proj", (shape.keys, shape.hidden), bias=bias),
        LinearSlot.V: linear(f"{at}.v_proj", (shape.keys, shape.hidden), bias=bias),
        LinearSlot.O: linear(
            f"{at}.{out}", (shape.hidden, shape.queries), bias=bias if out_bias is None else out_bias
        ),
    }


def stacked(
    path: str,
    columns: int,
    sizes: Mapping[LinearSlot, int],
    *,
    bias: bool = False,
    transposed: bool = False,
) -> Linears:
    """Several projections stored as one weight, one below the other."""
    found, start = {}, 0
    for slot, size in sizes.items():
        found[slot] = linear(path, (size, columns), bias=bias, rows=Rows(start, size), transposed=transposed)
        start += size
    return found


def gated_mlp(at: str, shape: Shape, *, bias: bool = False) -> Linears:
    """`down(activation(gate(x)) * up(x))`."""
    return {
        LinearSlot.GATE: linear(f"{at}.gate_proj", (shape.intermediate, shape.hidden), bias=bias),
        LinearSlot.UP: linear(f"{at}.up_proj", (shape.intermediate, shape.hidden), bias=bias),
        LinearSlot.DOWN: linear(f"{at}.down_proj", (shape.hidden, shape.intermediate), bias=bias),
    }


def plain_mlp(
    at: str, shape: Shape, up: str, down: str, *, bias: bool = True, transposed: bool = False
) -> Linears:
    """`down(activation(up(x)))`."""
    return {
        LinearSlot.UP: linear(
            f"{at}.{up}", (shape.intermediate, shape.hidden), bias=bias, transposed=transposed
        ),
        LinearSlot.DOWN: linear(
            f"{at}.{down}", (shape.hidden, shape.intermediate), bias=bias, transposed=transposed
        ),
    }


def norm(path: str, size: int, *, bias: bool = False, one_plus: bool = False) -> NormSource:
    return NormSource(size, f"{path}.weight", f"{path}.bias" if bias else None, one_plus)


def pre_norms(at: str, shape: Shape, *, bias: bool = False, one_plus: bool = False) -> Norms:
    """A norm before attention and one before the MLP."""
    return {
        NormSlot.ATTENTION: norm(f"{at}.input_layernorm", shape.hidden, bias=bias, one_plus=one_plus),
        NormSlot.MLP: norm(f"{at}.post_attention_layernorm", shape.hidden, bias=bias, one_plus=one_plus),
    }


def post_norms(at: str, shape: Shape) -> Norms:
    """A norm after attention and one after the MLP, before each is added."""
    return {
        NormSlot.POST_ATTENTION: norm(f"{at}.post_attention_layernorm", shape.hidden),
        NormSlot.POST_MLP: norm(f"{at}.post_feedforward_layernorm", shape.hidden),
    }


def sandwich_norms(at: str, shape: Shape) -> Norms:
    """Gemma's norms before and after both halves."""
    names = {
        NormSlot.ATTENTION: "input_layernorm",
        NormSlot.POST_ATTENTION: "post_attention_layernorm",
        NormSlot.MLP: "pre_feedforward_layernorm",
        NormSlot.POST_MLP: "post_feedforward_layernorm",
    }
    return {slot: norm(f"{at}.{name}", shape.hidden, one_plus=True) for slot, name in names.items()}


def head_norms(at: str, query: int, key: int, *, one_plus: bool = False) -> Norms:
    """Norms of the query and the key before they turn: of `head_dim` values, or of all heads'."""
    return {
        NormSlot.Q: norm(f"{at}.q_norm", query, one_plus=one_plus),
        NormSlot.K: norm(f"{at}.k_norm", key, one_plus=one_plus),
    }


# -- the whole ------------------------------------------------------------------------------------


def model_parts(
    shape: Shape, *, embedding: str, final_norm: NormSource, tied: bool, head_bias: bool = False
) -> LayerRecord:
    """What stands before and after the blocks. A tied head is the embedding once more."""
    table = linear(embedding, (shape.vocab, shape.hidden))
    head = table if tied else linear("lm_head", (shape.vocab, shape.hidden), bias=head_bias)
    return LayerRecord({LinearSlot.EMBEDDING: table, LinearSlot.HEAD: head}, {NormSlot.FINAL: final_norm})


def decoder(
    shape: Shape,
    layers: Sequence[LayerRecord],
    model: LayerRecord,
    *,
    norm_kind: NormKind,
    eps: float,
    activation: Activation,
    rope: RopeParameters | None = None,
    ropes: Sequence[RopeTable] = (),
    turning: Rope = Rope.HALVES,
    gated: bool = True,
    parallel: bool = False,
    embedding_scale: float = 1.0,
    residual_scale: float = 1.0,
    logit_scale: float = 1.0,
    attention_scale: float | None = None,
    attention_softcap: float = 0.0,
    logit_softcap: float = 0.0,
    prefix: str = "model.",
    aliases: Mapping[str, str] | None = None,
) -> ModelSpec:
    """The record of a model. `rope` is the only table unless `ropes` lists them; neither: no rotation.
    `attention_scale` is 1 / sqrt(head_dim) where none is given; `prefix` is what base-model checkpoints leave
    out of their tensors' names."""
    tables = tuple(ropes) or (() if rope is None else (rope.table(shape.head_dim),))
    rotary_dim = 2 * len(tables[0].inverse_frequency) if tables else 0
    config = DecoderConfig(
        layers=shape.layers,
        hidden=shape.hidden,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        intermediate=shape.intermediate,
        vocab=shape.vocab,
        max_positions=min([shape.max_positions, *(each.positions for each in tables if each.positions)]),
        norm=norm_kind,
        norm_eps=eps,
        rope=turning if tables else Rope.NONE,
        rotary_dim=rotary_dim,
        activation=activation,
        gated=gated,
        parallel=parallel,
        embedding_scale=embedding_scale,
        residual_scale=residual_scale,
        logit_scale=logit_scale,
        attention_scale=shape.head_dim**-0.5 if attention_scale is None else attention_scale,
        attention_softcap=attention_softcap,
        logit_softcap=logit_softcap,
    )
    return ModelSpec(config, tuple(layers), model, tables, prefix, aliases or {})


def rms_model(
    config: Config,
    shape: Shape,
    layers: Sequence[LayerRecord],
    *,
    tied: bool,
    eps: float = 1e-6,
    activation: Activation | None = None,
    one_plus: bool = False,
    **options: Any,
) -> ModelSpec:
    """The frame that Llama's descendants share: `model.embed_tokens`, blocks, `model.norm`, `lm_head`, RMS norms.

    `tied` and `eps` are what the family assumes of a config that does not say; without an `activation` it is the
    config's `hidden_act`; `options` are those of `decoder`.
    """
    return decoder(
        shape,
        layers,
        model_parts(
            shape,
            embedding="model.embed_tokens",
            final_norm=norm("model.norm", shape.hidden, one_plus=one_plus),
            tied=config.flag("tie_word_embeddings", tied),
        ),
        norm_kind=NormKind.RMS,
        eps=config.positive("rms_norm_eps", eps),
        activation=read_activation(config) if activation is None else activation,
        **options,
    )


def with_positions(model: LayerRecord, positions: LinearSource) -> LayerRecord:
    """The model's own parts and a table of learned positions."""
    return LayerRecord({**model.linears, LinearSlot.POSITIONS: positions}, model.norms)


def blocks(
    shape: Shape, build: Callable[[int, str], LayerRecord], at: str = "model.layers"
) -> list[LayerRecord]:
    """`build(layer, path)` for every block."""
    return [build(layer, f"{at}.{layer}") for layer in range(shape.layers)]
