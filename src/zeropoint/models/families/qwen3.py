"""Qwen 3: Qwen 2 without biases and with RMS norms on the query and key of each head."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, head_norms, pre_norms, rms_model
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_qwen_windows, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, head_dim=128)
    bias = config.flag("attention_bias", False)
    windows = read_qwen_windows(config, shape)

    def block(layer: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        norms = pre_norms(at, shape) | head_norms(f"{at}.self_attn", shape.head_dim, shape.head_dim)
        return LayerRecord(linears, norms, windows[layer])

    rope = read_rope(config, max_positions=shape.max_positions)
    return rms_model(config, shape, blocks(shape, block), tied=False, rope=rope)
