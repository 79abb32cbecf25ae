"""The hyperparameters of a GGUF header, from a model spec. `to_config.py` is the inverse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from zeropoint.gguf.architecture.families import Family
from zeropoint.models.rope import RopeParameters
from zeropoint.models.spec import ModelSpec, NormKind, Rope, RopeTable

#: The tensor of factors by which llama.cpp divides the rotary frequencies.
ROPE_FACTORS = "rope_freqs.weight"


def hyperparameters(family: Family, record: ModelSpec) -> dict[str, Any]:
    """Return the header's fields for a model, by full key (`llama.block_count`)."""
    config = record.config
    norm = "layer_norm_rms_epsilon" if config.norm == NormKind.RMS else "layer_norm_epsilon"
    fields: dict[str, Any] = {
        "context_length": config.max_positions,
        "embedding_length": config.hidden,
        "block_count": config.layers,
        "feed_forward_length": config.intermediate,
        "vocab_size": config.vocab,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        f"attention.{norm}": config.norm_eps,
    }
    stated = {
        "embedding_scale": ("embedding_scale", config.embedding_scale),
        "residual_scale": ("residual_scale", config.residual_scale),
        "attention_scale": ("attention.scale", config.attention_scale),
        "attention_softcap": ("attn_logit_softcapping", config.attention_softcap),
        "logit_softcap": ("final_logit_softcapping", config.logit_softcap),
        # Granite's header holds a divisor of the logits, Cohere's a factor
        "logit_scale": ("logit_scale", 1 / config.logit_scale if family.pairs else config.logit_scale),
    }
    fields |= {key: value for name, (key, value) in stated.items() if name in family.scales | family.softcaps}
    if family.parallel == "stated":
        fields["use_parallel_residual"] = config.parallel
    fields |= _windows(family, record)
    if config.rope != Rope.NONE:
        fields |= _rotation(family, record)
    return {f"{family.name}.{key}": value for key, value in fields.items()}


def rope_factors(family: Family, record: ModelSpec) -> NDArray[np.float32] | None:
    """Return the factor table of a Llama 3 rotation, float32 `[rotary_dim / 2]`; None for any other rotation."""
    table = main_rotation(record)
    if not family.factors or table is None or table.parameters is None or table.parameters.kind != "llama3":
        return None
    theta = {"rope_theta": table.parameters.theta}
    plain = RopeParameters(theta, max_positions=1).table(2 * len(table.inverse_frequency))
    return (plain.inverse_frequency / table.inverse_frequency).astype(np.float32)


def main_rotation(record: ModelSpec) -> RopeTable | None:
    """Return the rotation of the layers with full attention; None if the model has no rotation."""
    return record.ropes[0] if record.ropes else None


def narrow_windows(record: ModelSpec) -> list[int]:
    """Return each layer's attention window in tokens; 0 for a layer that attends to the whole context."""
    most = record.config.max_positions
    return [layer.window if 0 < layer.window < most else 0 for layer in record.layers]


def write(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    """Write header fields with the GGUF value types that llama.cpp expects."""
    for key, value in values.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_key_value(key, value, GGUFValueType.STRING)


def _windows(family: Family, record: ModelSpec) -> dict[str, Any]:
    """Return the header's fields about sliding-window attention."""
    windows = narrow_windows(record)
    if family.windows == "none" or not any(windows):
        return {}
    fields: dict[str, Any] = {"attention.sliding_window": max(windows)}
    slides = [window > 0 for window in windows]
    if family.windows == "period" and slides != default_slides(family, len(windows)):
        fields["attention.sliding_window_pattern"] = slides
    return fields


def default_slides(family: Family, layers: int) -> list[bool]:
    """Return, for each layer, whether its attention slides if the header has no list of sliding layers."""
    return [(layer + 1) % family.period != 0 for layer in range(layers)]


def _rotation(family: Family, record: ModelSpec) -> dict[str, Any]:
    """Return the header's fields about the rotary embedding."""
    table = main_rotation(record)
    assert table is not None
    rope = table.parameters
    if rope is None:
        return {}
    fields: dict[str, Any] = {"rope.dimension_count": record.config.rotary_dim, "rope.freq_base": rope.theta}
    if rope.kind in ("linear", "yarn"):
        fields |= {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.numbers["factor"]}
    if rope.kind == "yarn":
        context = int(rope.numbers["original_max_position_embeddings"])
        fields["rope.scaling.original_context_length"] = context
    if family.windows == "period" and len(record.ropes) > 1:
        sliding = record.ropes[1].parameters
        if sliding is not None:
            fields["rope.freq_base_swa"] = sliding.theta
    return fields
