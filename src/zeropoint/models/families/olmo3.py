"""OLMo 3: OLMo 2 with three sliding-window layers per full layer; rope scaling applies to the full layers only."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, head_norms, post_norms, rms_model
from zeropoint.models.rope import read_rope_by_layer_type
from zeropoint.models.shape import read_layer_types, read_shape, read_window
from zeropoint.models.spec import LayerRecord, ModelSpec

FULL, SLIDING = 0, 1


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config)
    bias = config.flag("attention_bias", False)
    window = read_window(config, default=4096)
    slides = read_layer_types(config, shape, lambda layer: (layer + 1) % 4 != 0)

    def block(layer: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(f"{at}.mlp", shape)
        norms = post_norms(at, shape) | head_norms(f"{at}.self_attn", shape.queries, shape.keys)
        sliding = slides[layer]
        return LayerRecord(linears, norms, window if sliding else 0, SLIDING if sliding else FULL)

    full, sliding = read_rope_by_layer_type(
        config, ("rope_theta", 5e5), ("", 5e5), max_positions=shape.max_positions
    )
    ropes = (full.table(shape.head_dim), sliding.table(shape.head_dim))
    return rms_model(config, shape, blocks(shape, block), tied=False, eps=1e-5, ropes=ropes)
