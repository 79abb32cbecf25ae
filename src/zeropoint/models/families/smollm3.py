"""SmolLM 3: Llama without rotary embedding in every fourth layer (NoPE, arXiv:2501.18795)."""

from __future__ import annotations

from zeropoint.models.config import Config
from zeropoint.models.parts import attention, blocks, gated_mlp, pre_norms, rms_model
from zeropoint.models.rope import read_rope, standing_still
from zeropoint.models.shape import read_shape
from zeropoint.models.spec import LayerRecord, ModelSpec

ROTATED, UNROTATED = 0, 1


def derive(config: Config) -> ModelSpec:
    shape = read_shape(config, kv_heads=4)
    bias, mlp_bias = config.flag("attention_bias", False), config.flag("mlp_bias", False)
    config.only("use_sliding_window", False)
    config.get("sliding_window")  # without `use_sliding_window` it has no effect
    config.get("layer_types")
    rotated = _rotated_layers(config, shape.layers)

    def block(layer: int, at: str) -> LayerRecord:
        linears = attention(f"{at}.self_attn", shape, bias=bias) | gated_mlp(
            f"{at}.mlp", shape, bias=mlp_bias
        )
        return LayerRecord(linears, pre_norms(at, shape), table=ROTATED if rotated[layer] else UNROTATED)

    rope = read_rope(config, max_positions=shape.max_positions, theta=2_000_000.0)
    tables = (rope.table(shape.head_dim), standing_still(rope.rotary_dim(shape.head_dim)))
    return rms_model(config, shape, blocks(shape, block), tied=True, ropes=tables)


def _rotated_layers(config: Config, layers: int) -> list[int]:
    """Return 1 for each layer with rotation, 0 for each without, like `no_rope_layers` (despite that field's name)."""
    interval = config.size("no_rope_layer_interval", 4)
    flags = config.get("no_rope_layers")
    if flags is None:
        return [int((layer + 1) % interval != 0) for layer in range(layers)]
    if not isinstance(flags, list) or len(flags) != layers or any(value not in (0, 1) for value in flags):
        config.refuse("no_rope_layers", flags)
    return list(flags)
