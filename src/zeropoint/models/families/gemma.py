"""Gemma 1: norms that multiply by `1 + w`, embedding scaled by `sqrt(hidden)`, GELU, tied head."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, pre_norms, rms_model
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_shape
from zeropoint.models.spec import Activation, LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, kv_heads=16, head_dim=256)
    bias = config.flag("attention_bias", False)
    config.only("use_bidirectional_attention", False)
    # transformers replaces "gelu" by the tanh approximation in this family
    if config.get("hidden_act") not in (None, "gelu", "gelu_pytorch_tanh"):
        config.refuse("hidden_act", config.get("hidden_act"))

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        return LayerRecord(linears, pre_norms(at, shape, one_plus=True))

    return rms_model(
        config,
        shape,
        blocks(shape, block),
        tied=True,
        activation=Activation.GELU_TANH,
        one_plus=True,
        rope=read_rope(config, max_positions=shape.max_positions),
        embedding_scale=shape.hidden**0.5,
    )
