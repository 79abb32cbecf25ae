"""Llama 1 to 3, SmolLM 1 and 2, TinyLlama: RMS norms before attention and MLP, rotary embedding, gated MLP."""

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

    rope = read_rope(config, max_positions=shape.max_positions)
    return rms_model(config, shape, blocks(shape, block), tied=False, rope=rope)
