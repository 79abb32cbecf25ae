"""OLMo 2: Llama with norms after attention and MLP instead of before, and norms over all heads of query and key
(arXiv:2501.00656)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, head_norms, post_norms, rms_model
from zeropoint.models.rope import read_rope
from zeropoint.models.shape import read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    bias = config.flag("attention_bias", False)

    def block(_: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        norms = post_norms(at, shape) | head_norms(f"{at}.self_attn", shape.queries, shape.keys)
        return LayerRecord(linears, norms)

    rope = read_rope(config, max_positions=shape.max_positions)
    return rms_model(config, shape, blocks(shape, block), tied=False, eps=1e-5, rope=rope)
