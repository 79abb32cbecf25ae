"""GPT-2: learned positions, layer norms, and a fused query-key-value projection; matrices are stored as `[in, out]`."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import (
    blocks,
    decoder,
    linear,
    norm,
    outer_record,
    plain_mlp,
    stacked,
    with_positions,
)
from zeropoint.models.shape import Shape, check_shape, read_activation
from zeropoint.models.spec import LayerRecord, LinearSlot, ModelSpec, NormKind, NormSlot


def derive(config: Config) -> ModelSpec:
    hidden, heads = config.size("n_embd", 768), config.size("n_head", 12)
    shape = Shape(
        layers=config.size("n_layer", 12),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=max(hidden // heads, 1),
        intermediate=config.size("n_inner", 4 * hidden),
        vocab=config.size("vocab_size", 50257),
        max_positions=config.size("n_positions", 1024),
    )
    check_shape(config, shape)
    if hidden % heads:
        config.refuse("n_head", heads)
    config.only("scale_attn_weights", True)
    config.only("add_cross_attention", False)
    config.only("scale_attn_by_inverse_layer_idx", False)

    def block(_: int, at: str) -> LayerRecord:
        qkv = {LinearSlot.Q: hidden, LinearSlot.K: hidden, LinearSlot.V: hidden}
        linears = {
            **stacked(f"{at}.attn.c_attn", hidden, qkv, bias=True, transposed=True),
            LinearSlot.O: linear(f"{at}.attn.c_proj", (hidden, hidden), bias=True, transposed=True),
            **plain_mlp(f"{at}.mlp", shape, "c_fc", "c_proj", transposed=True),
        }
        norms = {
            NormSlot.ATTENTION: norm(f"{at}.ln_1", hidden, bias=True),
            NormSlot.MLP: norm(f"{at}.ln_2", hidden, bias=True),
        }
        return LayerRecord(linears, norms)

    tied = config.flag("tie_word_embeddings", True)
    final_norm = norm("transformer.ln_f", hidden, bias=True)
    model = outer_record(shape, embedding="transformer.wte", final_norm=final_norm, tied=tied)
    return decoder(
        shape,
        blocks(shape, block, "transformer.h"),
        with_positions(model, linear("transformer.wpe", (shape.max_positions, hidden))),
        norm_kind=NormKind.LAYER,
        eps=config.positive("layer_norm_epsilon", 1e-5),
        activation=read_activation(config, "activation_function", "gelu_new"),
        gated=False,
        prefix="transformer.",
    )
