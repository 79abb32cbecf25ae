"""The hyperparameters of a GGUF header, from a model's record: the inverse of `configs.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gguf import GGUFValueType, GGUFWriter
from numpy.typing import NDArray

from zeropoint.gguf.families import Family
from zeropoint.models.rope import RopeParameters
from zeropoint.models.spec import ModelSpec, NormKind, Rope, RopeTable

#: Frequencies by which llama.cpp divides the plain ones.
ROPE_FACTORS = "rope_freqs.weight"


def hyperparameters(family: Family, record: ModelSpec) -> dict[str, Any]:
    """Return what the header says of a model, by the keys of a file: numbers, flags, texts, lists of flags."""
    config = record.config
    norm = "layer_norm_rms_epsilon" if config.norm == NormKind.RMS else "layer_norm_epsilon"
    found: dict[str, Any] = {
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
        # Granite divides by its number, Cohere multiplies
        "logit_scale": ("logit_scale", 1 / config.logit_scale if family.pairs else config.logit_scale),
    }
    found |= {
        key: value for field, (key, value) in stated.items() if field in family.scales | family.softcaps
    }
    if family.parallel == "stated":
        found["use_parallel_residual"] = config.parallel
    found |= _windows(family, record)
    if config.rope != Rope.NONE:
        found |= _rotation(family, record)
    return {f"{family.name}.{key}": value for key, value in found.items()}


def rope_factors(family: Family, record: ModelSpec) -> NDArray[np.float32] | None:
    """Return the table of factors `[rotary_dim / 2]` that a rotation of Llama 3's kind takes; None for any other."""
    table = main_rotation(record)
    if not family.factors or table is None or table.parameters is None or table.parameters.kind != "llama3":
        return None
    theta = {"rope_theta": table.parameters.theta}
    plain = RopeParameters(theta, max_positions=1).table(2 * len(table.inverse_frequency))
    return (plain.inverse_frequency / table.inverse_frequency).astype(np.float32)


def main_rotation(record: ModelSpec) -> RopeTable | None:
    """Return the rotation of the layers that see the whole context."""
    return record.ropes[0] if record.ropes else None


def narrow_windows(record: ModelSpec) -> list[int]:
    """Return each layer's window, 0 for one that is not narrower than the context."""
    most = record.config.max_positions
    return [layer.window if 0 < layer.window < most else 0 for layer in record.layers]


def write(writer: GGUFWriter, values: Mapping[str, Any]) -> None:
    """Write header fields in the types that llama.cpp reads them in."""
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
    windows = narrow_windows(record)
    if family.windows == "none" or not any(windows):
        return {}
    found: dict[str, Any] = {"attention.sliding_window": max(windows)}
    slides = [window > 0 for window in windows]
    if family.windows == "period" and slides != default_slides(family, len(windows)):
        found["attention.sliding_window_pattern"] = slides
    return found


def default_slides(family: Family, layers: int) -> list[bool]:
    """Return which layers slide where the header does not list them."""
    return [(layer + 1) % family.period != 0 for layer in range(layers)]


def _rotation(family: Family, record: ModelSpec) -> dict[str, Any]:
    table = main_rotation(record)
    assert table is not None
    rope = table.parameters
    if rope is None:
        return {}
    found: dict[str, Any] = {"rope.dimension_count": record.config.rotary_dim, "rope.freq_base": rope.theta}
    if rope.kind in ("linear", "yarn"):
        found |= {"rope.scaling.type": rope.kind, "rope.scaling.factor": rope.numbers["factor"]}
    if rope.kind == "yarn":
        context = int(rope.numbers["original_max_position_embeddings"])
        found["rope.scaling.original_context_length"] = context
    if family.windows == "period" and len(record.ropes) > 1:
        sliding = record.ropes[1].parameters
        if sliding is not None:
            found["rope.freq_base_swa"] = sliding.theta
    return found
