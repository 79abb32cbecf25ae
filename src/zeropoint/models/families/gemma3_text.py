"""Gemma 3 (text): Gemma 2 with norms on query and key instead of soft caps, and five sliding-window layers per full
layer, which use a second rotary table (arXiv:2503.19786)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, head_norms, rms_model, sandwich_norms
from zeropoint.models.rope import read_rope_by_layer_type
from zeropoint.models.shape import read_activation, read_layer_types, read_shape, read_window
from zeropoint.models.spec import LayerRecord, ModelSpec

FULL, SLIDING = 0, 1


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, kv_heads=4, head_dim=256)
    bias = config.flag("attention_bias", False)
    config.only("use_bidirectional_attention", False)
    config.ignore("attn_logit_softcapping")  # transformers stores it but does not apply it
    window = read_window(config, default=4096)
    config.ignore("_sliding_window_pattern")  # transformers' internal copy of `sliding_window_pattern`
    pattern = config.size("sliding_window_pattern", 6)
    slides = read_layer_types(config, shape, lambda layer: (layer + 1) % pattern != 0)

    def block(layer: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        norms = sandwich_norms(at, shape) | head_norms(
            f"{at}.self_attn", shape.head_dim, shape.head_dim, one_plus=True
        )
        return LayerRecord(linears, norms, window if slides[layer] else 0, SLIDING if slides[layer] else FULL)

    full, sliding = read_rope_by_layer_type(
        config, ("rope_theta", 1e6), ("rope_local_base_freq", 1e4), max_positions=shape.max_positions
    )
    return rms_model(
        config,
        shape,
        blocks(shape, block),
        tied=True,
        activation=read_activation(config, "hidden_activation", "gelu_pytorch_tanh"),
        one_plus=True,
        ropes=(full.table(shape.head_dim), sliding.table(shape.head_dim)),
        embedding_scale=shape.hidden**0.5,
        attention_scale=config.positive("query_pre_attn_scalar", 256) ** -0.5,
        logit_softcap=config.softcap("final_logit_softcapping", 0.0),
    )
