"""OPT: learned positions starting at row 2 of their table, layer norms, ReLU (arXiv:2205.01068)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import (
    attention,
    blocks,
    decoder,
    linear,
    norm,
    outer_record,
    plain_mlp,
    with_positions,
)
from zeropoint.models.shape import read_activation, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec, NormKind, NormSlot, Rows

#: Row of the position table for the first token; the original code reserved the rows before for padding.
POSITION_OFFSET = 2


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, intermediate="ffn_dim", grouped=False, own_head_dim=False)
    bias = config.flag("enable_bias", True)
    affine = config.flag("layer_norm_elementwise_affine", True)
    config.only("do_layer_norm_before", True)
    config.only("_remove_final_layer_norm", False)
    config.only("word_embed_proj_dim", shape.hidden)
    if not affine:
        config.refuse("layer_norm_elementwise_affine", affine)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias, out="out_proj")
        linears |= plain_mlp(at, shape, "fc1", "fc2", bias=bias)
        norms = {
            NormSlot.ATTENTION: norm(f"{at}.self_attn_layer_norm", shape.hidden, bias=True),
            NormSlot.MLP: norm(f"{at}.final_layer_norm", shape.hidden, bias=True),
        }
        return LayerRecord(linears, norms)

    at = "model.decoder"
    final_norm = norm(f"{at}.final_layer_norm", shape.hidden, bias=True)
    tied = config.flag("tie_word_embeddings", True)
    model = outer_record(shape, embedding=f"{at}.embed_tokens", final_norm=final_norm, tied=tied)
    rows = Rows(POSITION_OFFSET, shape.max_positions)
    positions = linear(f"{at}.embed_positions", (shape.max_positions, shape.hidden), rows=rows)
    return decoder(
        shape,
        blocks(shape, block, f"{at}.layers"),
        with_positions(model, positions),
        norm_kind=NormKind.LAYER,
        eps=1e-5,
        activation=read_activation(config, "activation_function", "relu"),
        gated=False,
    )
