"""What the native engine does not cover is refused by field and value; no config crashes it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import tiny
from zeropoint.errors import UnsupportedError
from zeropoint.models.families import derive


def config_of(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((path / "config.json").read_text())
    return loaded


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("llama_tied", "model_type", "mamba"),
        ("llama_tied", "model_type", "../config"),
        ("llama_tied", "model_type", None),
        ("llama_tied", "hidden_act", "quick_gelu"),
        ("llama_tied", "rope_scaling", {"rope_type": "proportional", "factor": 2.0}),
        ("llama_tied", "rope_scaling", {"rope_type": "longrope", "short_factor": [1.0], "factor": 2.0}),
        ("llama_tied", "rope_scaling", {"rope_type": "linear", "factor": 2.0, "partial_rotary_factor": 0.5}),
        ("llama_tied", "rope_scaling", {"type": "longrope", "factor": 2.0}),
        ("llama_tied", "rope_parameters", {"rope_type": "linear", "factor": -1, "rope_theta": 1e4}),
        ("llama_tied", "rope_parameters", {"rope_type": "yarn", "rope_theta": 1e4}),
        ("llama_tied", "rope_parameters", {"rope_type": "mrope", "rope_theta": 1e4, "mrope_section": [1]}),
        ("llama_tied", "num_hidden_layers", 0),
        ("llama_tied", "num_hidden_layers", 10**7),
        ("llama_tied", "hidden_size", "64"),
        ("llama_tied", "hidden_size", 2**40),
        ("llama_tied", "num_key_value_heads", 3),
        ("llama_tied", "rms_norm_eps", 0),
        ("llama_tied", "attention_bias", "yes"),
        ("llama_tied", "sliding_window", 4096),
        ("llama_tied", "attention_chunk_size", 8192),
        ("llama_tied", "is_causal", False),
        ("llama_tied", "layer_types", ["sliding_attention", "full_attention"]),
        ("llama_tied", "per_layer_config", {"0": {"hidden_act": "relu"}}),
        ("olmo", "clip_qkv", 8.0),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "add_cross_attention", True),
        ("qwen2", "layer_types", ["linear_attention", "full_attention"]),
        ("gemma2", "query_pre_attn_scalar", -1),
        ("gemma3_text", "use_bidirectional_attention", True),
        ("phi", "qk_layernorm", True),
        ("opt", "do_layer_norm_before", False),
        ("cohere", "use_qk_norm", True),
        ("smollm3", "use_sliding_window", True),
    ],
)
def test_a_refusal_names_the_field_and_the_value(
    name: str, field: str, value: Any, tiny_checkpoint: Callable[[str], Path]
) -> None:
    config = config_of(tiny_checkpoint(name))
    derive(config)
    with pytest.raises(UnsupportedError) as refused:
        derive({**config, field: value})
    message = str(refused.value)
    names = (field, "rope type", "rope_parameters.")
    assert any(each in message for each in names), message
    assert "\n" not in message
    assert len(message) < 200


@pytest.mark.parametrize(
    "field", ["hidden_size", "num_attention_heads", "vocab_size", "max_position_embeddings"]
)
def test_a_missing_size_is_named(field: str, tiny_checkpoint: Callable[[str], Path]) -> None:
    config = config_of(tiny_checkpoint("llama_tied"))
    del config[field]
    with pytest.raises(UnsupportedError, match=field):
        derive(config)


def test_old_and_new_rope_fields_agree(tiny_checkpoint: Callable[[str], Path]) -> None:
    new = config_of(tiny_checkpoint("llama3_rope"))
    old = {key: value for key, value in new.items() if key != "rope_parameters"}
    scaling = dict(new["rope_parameters"])
    old["rope_theta"] = scaling.pop("rope_theta")
    old["rope_scaling"] = {"type": scaling.pop("rope_type"), **scaling}
    tables = [derive(config).ropes[0].inverse_frequency for config in (new, old)]
    assert (tables[0] == tables[1]).all()


JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 2**31, 10**30, 0.5, -2.5, float("1e308"), "", "silu", "x" * 500, [], [1], {},
    {"rope_type": "yarn"}, {"full_attention": {}}, {"full_attention": 3}, [None] * 4, "full_attention",
)  # fmt: skip


def test_two_thousand_mutated_configs_give_a_record_or_a_sentence(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    rng = random.Random(0)
    configs = [config_of(tiny_checkpoint(name)) for name in tiny.NATIVE]
    refusals = []
    for _ in range(2000):
        config = json.loads(json.dumps(rng.choice(configs)))
        for _ in range(rng.randint(1, 3)):
            mutate(config, rng)
        try:
            derive(config)
        except UnsupportedError as error:
            refusals.append(str(error))
    assert len(refusals) > 500
    assert all(text and "\n" not in text for text in refusals)


def mutate(config: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(list(config))
    kind = rng.randrange(4)
    if kind == 0:
        del config[key]
        if not config:
            config["model_type"] = "llama"
    elif kind == 1 and isinstance(config[key], dict) and config[key]:
        inner = rng.choice(list(config[key]))
        config[key][inner] = rng.choice(JUNK)
    elif kind == 2 and type(config[key]) in (int, float):
        config[key] = config[key] * rng.choice((-1, 0, 2, 3, 0.5, 1000))
    else:
        config[key] = rng.choice(JUNK)
