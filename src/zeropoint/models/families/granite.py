"""Granite: Llama with scale factors for embedding, attention, residuals and logits, all read from the config."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, pre_norms, rms_model
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(
            f"{at}.mlp", shape, bias=mlp_bias
        )
        return LayerRecord(linears, pre_norms(at, shape))

    return rms_model(
        config,
        shape,
        blocks(shape, block),
        tied=False,
        rope=read_rope(config, max_positions=shape.max_positions),
        embedding_scale=config.positive("embedding_multiplier", 1.0),
        residual_scale=config.positive("residual_multiplier", 1.0),
        attention_scale=config.positive("attention_multiplier", 1.0),
        logit_scale=1 / config.positive("logits_scaling", 1.0),
    )
