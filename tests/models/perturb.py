"""Odd values for every field of a config.json, and whether our reading of each is transformers' own."""

from __future__ import annotations

import json
import logging
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from tests.models.reads import TOKENS, build_config, build_model, families, run, tiny_fields
from tests.runtime.native.reference import Reference
from zeropoint.errors import UnsupportedError
from zeropoint.models import fields
from zeropoint.models.families import derive, engine_of

#: Hard to reach otherwise: a tiny model whose rotations, windows and patterns differ within 24 tokens.
ROPES: tuple[dict[str, Any], ...] = (
    {"rope_type": "default", "rope_theta": 300.0},
    {"type": "default", "factor": 8.0, "mrope_section": [2, 3, 3]},
    {"rope_type": "default", "partial_rotary_factor": 0.5},
    {"type": "linear", "factor": 3.0},
    {"rope_type": "linear", "factor": 3.0, "partial_rotary_factor": 0.5},
    {"rope_type": "dynamic", "factor": 3.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    {"type": "yarn", "factor": 4.0, "truncate": False, "rope_theta": 300.0, "beta_fast": 20, "beta_slow": 2},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 1.4, "attention_factor": None},
    {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "attention_factor": 0.5},
    {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
     "original_max_position_embeddings": 16},
    {"type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.5] * 8,
     "original_max_position_embeddings": 32},
    {"type": "su", "short_factor": [1.5] * 8, "long_factor": [2.5] * 8, "original_max_position_embeddings": 32},
    {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    {"full_attention": {"rope_type": "linear", "factor": 3.0}, "sliding_attention": {"rope_type": "default"}},
)  # fmt: skip

ACTIVATIONS = (
    "relu", "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "silu", "swish", "quick_gelu", "gelu_python",
    "gelu_accurate", "mish", "relu2", "tanh", "sigmoid", "linear", "gelu_10", "gelu_python_tanh", "laplace",
)  # fmt: skip

#: Values beyond those that a default's type gives.
VALUES: dict[str, tuple[Any, ...]] = {
    "hidden_act": ACTIVATIONS,
    "hidden_activation": ACTIVATIONS,
    "activation_function": ACTIVATIONS,
    "rope_scaling": ROPES,
    "rope_parameters": tuple({"rope_theta": 200.0, **rope} for rope in ROPES) + ROPES,
    "rope_theta": (300.0, 2_000_000, 1),
    "rope_local_base_freq": (300.0,),
    "rotary_emb_base": (300.0,),
    "rotary_pct": (0.5, 1.0, 0.3),
    "partial_rotary_factor": (0.5, 1.0, 0.3),
    "original_max_position_embeddings": (16,),
    "head_dim": (8, 24, 16),
    "sliding_window": (3, 24, 4096),
    "sliding_window_pattern": (2, 1),
    "_sliding_window_pattern": (2, 1),
    "attention_chunk_size": (4,),
    "layer_types": (
        ["full_attention"] * 2, ["sliding_attention"] * 2, ["sliding_attention", "full_attention"],
        ["full_attention"] * 3, ["full_attention"] * 4, ["chunked_attention"] * 2,
        ["sliding_attention", "full_attention"] * 2, ["sliding_attention", "sliding_attention", "full_attention"],
    ),
    "no_rope_layers": ([1, 0, 1, 1], [0, 0, 0, 0], [1, 0]),
    "no_rope_layer_interval": (2, 1),
    "max_window_layers": (0, 1),
    "num_key_value_heads": (1, 2, 4, 3),
    "num_hidden_layers": (1, 3),
    "num_attention_heads": (2, 8),
    "n_head": (2, 8),
    "n_inner": (80,),
    "per_layer_config": ({"0": {"rms_norm_eps": 0.5}}, {}),
    "is_causal": (True, False),
    "clip_qkv": (0.1,),
    "word_embed_proj_dim": (32,),
    "use_bidirectional_attention": (True, False),
    "query_pre_attn_scalar": (7, 3),
}  # fmt: skip


#: Fields that others give their meaning: a refusal may name those instead.
RELATED = ("num_attention_heads", "n_head", "hidden_size", "n_embd", "num_hidden_layers", "n_layer",
           "use_sliding_window", "sliding_window", "max_position_embeddings", "partial_rotary_factor",
           "num_key_value_heads")  # fmt: skip


def values(name: str, default: Any, current: Any) -> list[Any]:
    """Null, values of the default's type, and the field's own odd ones."""
    found: list[Any] = [None, *VALUES.get(name, ())]
    for seed in (default if current is None else current,):
        if isinstance(seed, bool):
            found.append(not seed)
        elif isinstance(seed, int) and name not in VALUES:
            found += [seed // 2 or 1, seed * 2]
        elif isinstance(seed, float) and name not in VALUES:
            found += [seed * 2 + 0.25, seed / 2]
    if not VALUES.get(name) and default is None and current is None:
        found += [True, False, 3, 0.5, "full_attention"]
    unique = {json.dumps(value): value for value in found if value != current}
    return list(unique.values())


Case = tuple[str, dict[str, Any]]


def cases(names: Sequence[str]) -> Iterator[Case]:
    """Every field that a tiny model's family reads, with each odd value."""
    for name in names:
        base = tiny_fields(name)
        for field, default in fields.read_by(base["model_type"]).items():
            for value in values(field, default, base.get(field)):
                yield name, {field: value}


def refusal(case: Case) -> str:
    """Why the native engine refuses the tiny model with a change; empty where it does not."""
    name, change = case
    return engine_of({**tiny_fields(name), **change})["reason"]


def transformers_logits(config: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Logits `[T, vocab]` (None where reading through a cache gives others) and weights; None where transformers
    refuses the config or fails."""
    with suppress(Exception):
        model = build_model(build_config(json.loads(json.dumps(config))))
        whole, parts = run(model)
        same = torch.allclose(whole, parts, atol=1e-3 * float(whole.abs().max()))
        stored = {key: value.numpy() for key, value in model.state_dict().items()}
        return (whole.numpy() if same and bool(whole.isfinite().all()) else None), stored
    return None


def verdict(case: Case) -> str:
    """`same`, `refused`, `only ours` (transformers fails) or what is wrong."""
    name, change = case
    config = {**tiny_fields(name), **change}
    try:
        record = derive(config)
    except UnsupportedError:
        return "refused"
    found = transformers_logits(config)
    if found is None:
        return "only ours"
    if record.config.max_positions < TOKENS.shape[1]:
        return "refused"  # the engine reads no text of this length
    want, stored = found
    if want is None:
        return "WRONG: a cache changes what transformers computes"
    try:
        got = Reference(record, stored).logits(TOKENS[0].numpy())
    except (KeyError, ValueError, IndexError, AssertionError) as error:
        return f"WRONG: {error!r}"
    distance = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    return "same" if distance < 1e-4 else f"WRONG: logits differ by {distance:.1e}"


def main() -> None:
    """Run every case; print what is wrong, and how many are not."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    for names in families().values():
        for case in cases(names):
            found = verdict(case)
            counts[found.split(":")[0]] += 1
            if found.startswith("WRONG"):
                print(*case, found, flush=True)
    print(dict(counts))


if __name__ == "__main__":
    main()
