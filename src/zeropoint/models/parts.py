"""Building blocks shared by the model families: projections, norms, and the final `ModelSpec`.

Tensor names are those of the transformers model; artifacts use the same names. `at` and `path` are prefixes of tensor
names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zeropoint.models.config import Config
from zeropoint.models.rope import RopeParameters
from zeropoint.models.shape import Shape, read_activation
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

# -- projections ----------------------------------------------------------------------------------


def linear(
    path: str,
    shape: tuple[int, int],
    *,
    bias: bool = False,
    rows: Rows | None = None,
    transposed: bool = False,
) -> LinearSource:
    """Describe a projection that is stored in the matrix `path.weight`, with the bias `path.bias` if `bias`.

    `shape` is `(out, in)` of the projection, which takes `rows` of the matrix (None: all rows). `transposed`: the
    matrix is stored as `[in, out]`.
    """
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
    """Return several projections stored as one matrix.

    `sizes`: the number of rows of each projection, in the order in which the projections are stacked.
    """
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
    """Return the query norm and the key norm, applied before the rotary embedding.

    `query` and `key` are the sizes of these norms: `head_dim` if each head is normalized alone, or the number of
    channels of all heads if they are normalized together.
    """
    return {
        NormSlot.Q: norm(f"{at}.q_norm", query, one_plus=one_plus),
        NormSlot.K: norm(f"{at}.k_norm", key, one_plus=one_plus),
    }


# -- the whole model ------------------------------------------------------------------------------


def outer_record(
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
    outer: LayerRecord,
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
    """Return the spec of a decoder model. `outer` is the result of `outer_record`.

    Rotary embedding: `rope` if all layers share one rotation, `ropes` if the layers choose among several
    (`LayerRecord.table`), neither if the model has none. `rope_kind` says which channels rotate together.
    `attention_scale` defaults to 1 / sqrt(head_dim).

    Tensor names start with `prefix` (Llama: `model.`, GPT-2: `transformer.`). A checkpoint that was saved without the
    output head may leave the prefix out. `aliases` maps a tensor name to another name that checkpoints use for the same
    tensor.
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
    return ModelSpec(config, tuple(layers), outer, tables, prefix, aliases or {})


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
        outer_record(
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


def with_positions(outer: LayerRecord, positions: LinearSource) -> LayerRecord:
    """Return `outer` with a table of learned position embeddings added."""
    return LayerRecord({**outer.linears, LinearSlot.POSITIONS: positions}, outer.norms)


def blocks(
    shape: Shape, build: Callable[[int, str], LayerRecord], at: str = "model.layers"
) -> list[LayerRecord]:
    """Return `build(number, path)` for every transformer block; `path` is `at.number`."""
    return [build(layer, f"{at}.{layer}") for layer in range(shape.layers)]
