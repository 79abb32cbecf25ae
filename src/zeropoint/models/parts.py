"""Building blocks shared by the model families: sizes from config.json, projections, norms, and the final `ModelSpec`.

Tensor names are those of the transformers model; artifacts use the same names. `at` and `path` are prefixes of tensor
names.
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
    """Sizes of a decoder: layer, head, vocabulary and position counts; channels of its hidden and MLP layers."""

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
        """Return the channels of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Return the channels of all key heads together; the value heads have as many."""
        return self.kv_heads * self.head_dim


#: Upper limits, far above any real model: a damaged config must not produce a spec with millions of layers.
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
    """Read the sizes of a model from the config fields that most families use.

    `kv_heads` and `head_dim` are the family's defaults where the config has no `num_key_value_heads` or `head_dim`;
    without a family default these are `num_attention_heads` and `hidden_size // num_attention_heads`.
    `intermediate` is the family's name for `intermediate_size`. `grouped=False`: no grouped-query attention, and
    `num_key_value_heads` is not read. `own_head_dim=False`: `head_dim` must be `hidden_size // num_attention_heads`.
    Raises `UnsupportedError` if a field is missing, refused or out of range.
    """
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
    """Return `shape` if its sizes are possible. Raises `UnsupportedError` naming the config field if not."""
    if shape.layers > MAX_LAYERS:
        config.refuse("num_hidden_layers", shape.layers)
    if shape.head_dim > MAX_HEAD_DIM:
        config.refuse("head_dim", shape.head_dim)
    if shape.heads % shape.kv_heads:
        config.refuse("num_key_value_heads", shape.kv_heads)
    return shape


def read_activation(config: Config, name: str = "hidden_act", default: str = "silu") -> Activation:
    """Return the MLP's activation function from the config field `name`.

    Raises `UnsupportedError` if the native engine lacks the function."""
    value = config.get(name, default)
    if not isinstance(value, str) or value not in ACTIVATIONS:
        config.refuse(name, value)
    return ACTIVATIONS[value]


def read_layer_types(config: Config, shape: Shape, default: Callable[[int], bool]) -> tuple[bool, ...]:
    """Return one boolean per layer: True for sliding-window attention, False for full attention.

    Without `layer_types` in the config, layer i is `default(i)`."""
    layer_types = config.get("layer_types")
    if layer_types is None:
        return tuple(default(layer) for layer in range(shape.layers))
    names = ("full_attention", "sliding_attention")
    if (
        not isinstance(layer_types, list)
        or len(layer_types) != shape.layers
        or any(kind not in names for kind in layer_types)
    ):
        config.refuse("layer_types", layer_types)
    return tuple(kind == "sliding_attention" for kind in layer_types)


def read_window(config: Config, *, default: int | None) -> int:
    """Return the size of the sliding attention window in positions; 0 means no window.

    Without a `sliding_window` field the window is `default` (None: no window); the value null means no window."""
    if not config.has("sliding_window"):
        return default or 0
    return 0 if config.get("sliding_window") is None else config.size("sliding_window")


def read_qwen_windows(config: Config, shape: Shape) -> tuple[int, ...]:
    """Return the attention window of each layer of a Qwen model, 0 for full attention.

    `use_sliding_window` false: no layer has a window. True: `layer_types` lists the layers with a window; without that
    list, the layers from number `max_window_layers` on have one.
    """
    first_layer = config.get("max_window_layers", 28)
    if type(first_layer) is not int or first_layer < 0:
        config.refuse("max_window_layers", first_layer)
    enabled = config.flag("use_sliding_window", False)
    window = read_window(config, default=4096)
    window = window if enabled else 0
    slides = read_layer_types(config, shape, lambda layer: window > 0 and layer >= first_layer)
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
    """Return the matrix `path.weight` of shape `[out, in]`, with the bias `path.bias` if `bias`."""
    return LinearSource(f"{path}.weight", shape, f"{path}.bias" if bias else None, rows, transposed)


def attention(
    at: str, shape: Shape, *, bias: bool = False, out_bias: bool | None = None, out: str = "o_proj"
) -> Linears:
    """Return separate query, key, value and output projections under the path `at`.

    `bias` is for all four; `out_bias`, if given, overrides it for the output projection, which is named `out`.
    """
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
    """Return several projections stored as one matrix. `sizes` lists the rows of each, from the top down."""
    projections, start = {}, 0
    for slot, size in sizes.items():
        projections[slot] = linear(
            path, (size, columns), bias=bias, rows=Rows(start, size), transposed=transposed
        )
        start += size
    return projections


def gated_mlp(at: str, shape: Shape, *, bias: bool = False) -> Linears:
    """Return the matrices of a gated MLP: `down(activation(gate(x)) * up(x))`."""
    return {
        LinearSlot.GATE: linear(f"{at}.gate_proj", (shape.intermediate, shape.hidden), bias=bias),
        LinearSlot.UP: linear(f"{at}.up_proj", (shape.intermediate, shape.hidden), bias=bias),
        LinearSlot.DOWN: linear(f"{at}.down_proj", (shape.hidden, shape.intermediate), bias=bias),
    }


def plain_mlp(
    at: str, shape: Shape, up: str, down: str, *, bias: bool = True, transposed: bool = False
) -> Linears:
    """Return the matrices of an MLP without a gate, `down(activation(up(x)))`, stored as `up` and `down`."""
    return {
        LinearSlot.UP: linear(
            f"{at}.{up}", (shape.intermediate, shape.hidden), bias=bias, transposed=transposed
        ),
        LinearSlot.DOWN: linear(
            f"{at}.{down}", (shape.hidden, shape.intermediate), bias=bias, transposed=transposed
        ),
    }


def norm(path: str, size: int, *, bias: bool = False, one_plus: bool = False) -> NormSource:
    """Return the norm `path.weight` of `size` channels; `one_plus`: it multiplies by 1 + the stored weight."""
    return NormSource(size, f"{path}.weight", f"{path}.bias" if bias else None, one_plus)


def pre_norms(at: str, shape: Shape, *, bias: bool = False, one_plus: bool = False) -> Norms:
    """Return the norms before attention and before the MLP, under the names that Llama uses."""
    return {
        NormSlot.ATTENTION: norm(f"{at}.input_layernorm", shape.hidden, bias=bias, one_plus=one_plus),
        NormSlot.MLP: norm(f"{at}.post_attention_layernorm", shape.hidden, bias=bias, one_plus=one_plus),
    }


def post_norms(at: str, shape: Shape) -> Norms:
    """Return the norms of the outputs of attention and MLP, each applied before the residual addition."""
    return {
        NormSlot.POST_ATTENTION: norm(f"{at}.post_attention_layernorm", shape.hidden),
        NormSlot.POST_MLP: norm(f"{at}.post_feedforward_layernorm", shape.hidden),
    }


def sandwich_norms(at: str, shape: Shape) -> Norms:
    """Return four norms: before and after attention, and before and after the MLP (Gemma 2 and 3)."""
    names = {
        NormSlot.ATTENTION: "input_layernorm",
        NormSlot.POST_ATTENTION: "post_attention_layernorm",
        NormSlot.MLP: "pre_feedforward_layernorm",
        NormSlot.POST_MLP: "post_feedforward_layernorm",
    }
    return {slot: norm(f"{at}.{name}", shape.hidden, one_plus=True) for slot, name in names.items()}


def head_norms(at: str, query: int, key: int, *, one_plus: bool = False) -> Norms:
    """Return the norms applied to query and key before the rotary embedding.

    `query` and `key` are their sizes: `head_dim` to normalize each head alone, or the channels of all heads together.
    """
    return {
        NormSlot.Q: norm(f"{at}.q_norm", query, one_plus=one_plus),
        NormSlot.K: norm(f"{at}.k_norm", key, one_plus=one_plus),
    }


# -- the whole model ------------------------------------------------------------------------------


def model_parts(
    shape: Shape, *, embedding: str, final_norm: NormSource, tied: bool, head_bias: bool = False
) -> LayerRecord:
    """Return the record of what lies outside the transformer blocks: embedding, final norm and output head.

    `tied`: the output head uses the embedding matrix."""
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
    rope_kind: Rope = Rope.HALVES,
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
    """Return the spec of a decoder model.

    Rotary embedding: `rope` if all layers share one rotation, `ropes` if the layers choose among several
    (`LayerRecord.table`), neither if the model has none. `rope_kind` says which channels rotate together.
    `attention_scale` defaults to 1 / sqrt(head_dim). `prefix` (Llama: `model.`, GPT-2: `transformer.`) starts tensor
    names, except in checkpoints without an output head. `aliases` maps a tensor name to another that checkpoints use.
    """
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
        rope=rope_kind if tables else Rope.NONE,
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
    """Return the spec of a model with Llama's outer layers: `model.embed_tokens`, `model.norm`, `lm_head`, RMS norms.

    `tied` and `eps` are the family's defaults for `tie_word_embeddings` and `rms_norm_eps`. `activation` defaults to
    the config's `hidden_act`. `options` are passed to `decoder`.
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
    """Return `model` with a table of learned position embeddings added."""
    return LayerRecord({**model.linears, LinearSlot.POSITIONS: positions}, model.norms)


def blocks(
    shape: Shape, build: Callable[[int, str], LayerRecord], at: str = "model.layers"
) -> list[LayerRecord]:
    """Return `build(number, path)` for every transformer block; `path` is `at.number`."""
    return [build(layer, f"{at}.{layer}") for layer in range(shape.layers)]
