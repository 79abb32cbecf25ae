"""Phi 3 and 4 (mini): Llama with a fused query-key-value matrix and a fused gate-up matrix."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import blocks, linear, pre_norms, rms_model, stacked
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_shape, read_window
from zeropoint.models.spec import LayerRecord, LinearSlot, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    window = read_window(config, default=None)

    def block(_: int, at: str) -> LayerRecord:
        qkv = {LinearSlot.Q: shape.queries, LinearSlot.K: shape.keys, LinearSlot.V: shape.keys}
        gate_up = {LinearSlot.GATE: shape.intermediate, LinearSlot.UP: shape.intermediate}
        linears = {
            **stacked(f"{at}.self_attn.qkv_proj", shape.hidden, qkv),
            LinearSlot.O: linear(f"{at}.self_attn.o_proj", (shape.hidden, shape.queries)),
            **stacked(f"{at}.mlp.gate_up_proj", shape.hidden, gate_up),
            LinearSlot.DOWN: linear(f"{at}.mlp.down_proj", (shape.hidden, shape.intermediate)),
        }
        return LayerRecord(linears, pre_norms(at, shape), window)

    rope = read_rope(config, max_positions=shape.max_positions, partial=1.0, original=4096)
    if rope.kind == "yarn":  # transformers treats it as longrope in this family
        config.refuse("rope_parameters.rope_type", "yarn")
    return rms_model(config, shape, blocks(shape, block), tied=False, eps=1e-5, rope=rope)
