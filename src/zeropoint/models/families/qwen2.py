"""Qwen 1.5, 2 and 2.5: Llama with biases on the query, key and value projections."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, pre_norms, rms_model
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_qwen_windows, read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    windows = read_qwen_windows(config, shape)

    def block(layer: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=True, out_bias=False)
        return LayerRecord(linears | gated_mlp(f"{at}.mlp", shape), pre_norms(at, shape), windows[layer])

    rope = read_rope(config, max_positions=shape.max_positions)
    return rms_model(config, shape, blocks(shape, block), tied=False, rope=rope)
