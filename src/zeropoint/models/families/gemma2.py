"""Gemma 2: Gemma 1 with norms before and after both attention and MLP, soft caps on attention scores and logits, and
sliding-window attention in every other layer (arXiv:2408.00118)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, rms_model, sandwich_norms
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_activation, read_layer_types, read_shape, read_window
from zeropoint.models.spec import LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, kv_heads=4, head_dim=256)
    bias = config.flag("attention_bias", False)
    config.only("use_bidirectional_attention", False)
    window = read_window(config, default=4096)
    slides = read_layer_types(config, shape, lambda layer: layer % 2 == 0)

    def block(layer: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        return LayerRecord(linears, sandwich_norms(at, shape), window if slides[layer] else 0)

    return rms_model(
        config,
        shape,
        blocks(shape, block),
        tied=True,
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        one_plus=True,
        rope=read_rope(config, max_positions=shape.max_positions),
        embedding_scale=shape.hidden**0.5,
        attention_scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        attention_softcap=config.softcap("attn_logit_softcapping", 50.0),
        logit_softcap=config.softcap("final_logit_softcapping", 30.0),
    )
