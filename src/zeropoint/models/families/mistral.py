"""Mistral: Llama with sliding-window attention in every layer and fewer key and value heads."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, pre_norms, rms_model
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_shape, read_window
from zeropoint.models.spec import LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, kv_heads=8)
    window = read_window(config, default=4096)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape) | gated_mlp(f"{at}.mlp", shape)
        return LayerRecord(linears, pre_norms(at, shape), window)

    rope = read_rope(config, max_positions=shape.max_positions)
    return rms_model(config, shape, blocks(shape, block), tied=False, rope=rope)
