"""What a header says becomes config.json: published shapes of files, typed in as data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.architecture.rotations import fit_llama3
from zeropoint.gguf.architecture.to_config import config_of
from zeropoint.models.families import derive
from zeropoint.models.rope import RopeParameters

TOP = frozenset({"token_embd.weight", "output_norm.weight"})


def header(arch: str, **fields: Any) -> dict[str, Any]:
    """A header's metadata; `a__b` is the key `a.b`, None takes one out."""
    norm = "layer_norm_epsilon" if arch in LAYER_NORMS else "layer_norm_rms_epsilon"
    common = {
        "block_count": 2,
        "embedding_length": 64,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "context_length": 4096,
        f"attention.{norm}": float(np.float32(1e-5)),
    }
    given = {key.replace("__", "."): value for key, value in fields.items()}
    values = {key: value for key, value in {**common, **given}.items() if value is not None}
    return {"general.architecture": arch, **{f"{arch}.{key}": value for key, value in values.items()}}


LAYER_NORMS = ("phi2", "olmo", "starcoder2", "stablelm", "gptneox", "command-r", "gpt2")


def read(arch: str, tensors: frozenset[str] = TOP, **fields: Any) -> dict[str, Any]:
    return config_of(header(arch, **fields), tensors, 256)


def test_numbers_are_the_shortest_that_are_the_same_float32() -> None:
    config = read("llama", attention__layer_norm_rms_epsilon=9.999999974752427e-07, rope__freq_base=500000.0)
    assert config["rms_norm_eps"] == 1e-6
    assert config["rope_parameters"] == {"rope_theta": 500000.0, "rope_type": "default"}


def test_the_size_of_a_head() -> None:
    assert "head_dim" not in read("llama", attention__key_length=16)
    assert read("llama", attention__key_length=32, attention__value_length=32)["head_dim"] == 32
    assert read("qwen3")["head_dim"] == 16  # its own default is 128
    with pytest.raises(UnsupportedError, match="differ in size"):
        read("llama", attention__key_length=32)


@pytest.mark.parametrize("arch", ["llama", "granite", "phi3"])
def test_linear_and_yarn(arch: str) -> None:
    more = {"logit_scale": 8.0}
    linear = read(arch, rope__scaling__type="linear", rope__scaling__factor=4.0, **more)
    assert linear["rope_parameters"] == {"rope_theta": 1e4, "rope_type": "linear", "factor": 4.0}
    yarn = read(
        arch,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=1024,
        rope__scaling__yarn_beta_fast=16.0,
        rope__scaling__yarn_attn_factor=2.0,
        **more,
    )["rope_parameters"]
    assert yarn["original_max_position_embeddings"] == 1024
    assert yarn["beta_fast"] == 16.0
    assert yarn["attention_factor"] == pytest.approx(2 * (0.1 * np.log(4) + 1))
    assert read("llama", rope__scale_linear=2.0)["rope_parameters"]["factor"] == 2.0


@pytest.mark.parametrize(
    ("fields", "tensors", "why"),
    [
        ({"rope__scaling__type": "longrope", "rope__scaling__factor": 4.0}, TOP, "longrope"),
        ({"rope__dimension_count": 8}, TOP, "turns 8 of 16"),
        ({"attention__head_count": np.array([4, 2], np.int32)}, TOP, "from layer to layer"),
        ({}, TOP | {"rope_factors_long.weight"}, "beyond it"),
        ({"rope__scaling__type": "yarn", "rope__scaling__factor": 4.0,
          "rope__scaling__yarn_log_multiplier": 0.1}, TOP, "yarn_log_multiplier"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(fields: dict[str, Any], tensors: frozenset[str], why: str) -> None:
    with pytest.raises(UnsupportedError, match=why):
        read("llama", tensors, **fields)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"block_count": None}, "block_count"),
        ({"block_count": "2"}, "not a size"),
        ({"context_length": -1}, "not a size"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "not a number"),
        ({"vocab_size": 300}, "300 tokens"),
    ],
)
def test_a_damaged_header_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(CheckpointError, match=why):
        read("llama", **fields)


def test_equal_numbers_of_all_layers_are_one() -> None:
    config = read("llama", attention__head_count_kv=np.array([2, 2], np.int32))
    assert config["num_key_value_heads"] == 2


def test_windows() -> None:
    assert read("llama", attention__sliding_window=512)["model_type"] == "mistral"
    assert read("phi3", attention__sliding_window=0)["sliding_window"] is None
    assert read("phi3", attention__sliding_window=2047)["sliding_window"] == 2047
    gemma = read("gemma3", attention__sliding_window=512, block_count=7)
    assert gemma["layer_types"].index("full_attention") == 5
    assert gemma["layer_types"].count("full_attention") == 1
    listed = np.array([True, False])
    gemma = read("gemma2", attention__sliding_window=512, attention__sliding_window_pattern=listed)
    assert gemma["layer_types"] == ["sliding_attention", "full_attention"]
    assert read("gemma2")["sliding_window"] == 4096  # llama.cpp's default
    assert read("olmo2")["model_type"] == "olmo2"
    assert read("olmo2", attention__sliding_window=4096)["model_type"] == "olmo3"


def test_soft_caps_and_scales() -> None:
    gemma = read("gemma2")
    assert (gemma["attn_logit_softcapping"], gemma["final_logit_softcapping"]) == (50.0, 30.0)
    assert read("gemma3", attention__sliding_window=512)["final_logit_softcapping"] is None
    largest = read("gemma2", block_count=46, attention__key_length=32, attention__value_length=32)
    assert largest["query_pre_attn_scalar"] == 16
    granite = read(
        "granite", logit_scale=8.0, embedding_scale=12.0, residual_scale=0.22, attention__scale=0.0078125
    )
    assert granite["residual_multiplier"] == 0.22
    assert granite["logits_scaling"] == 8.0


@pytest.mark.parametrize(
    ("arch", "more"),
    [
        ("phi2", {"rope__dimension_count": 8}),
        ("stablelm", {"rope__dimension_count": 4}),
        ("gptneox", {"rope__dimension_count": 4, "attention__head_count_kv": None}),
        ("command-r", {"logit_scale": 0.0625}),
        ("smollm3", {"block_count": 4}),
        ("gpt2", {}),
        ("starcoder2", {}),
        ("olmo", {}),
    ],
)
def test_every_config_is_one_that_the_engine_reads(arch: str, more: dict[str, Any]) -> None:
    own_head = arch == "phi2"  # a Phi head has a bias, which a tied one could not have
    record = derive(read(arch, TOP | {"output.weight"} if own_head else TOP, **more))
    if "rope__dimension_count" in more:
        assert record.config.rotary_dim == more["rope__dimension_count"]


# -- Llama 3's rotation -------------------------------------------------------------------------------


def factors_of(theta: float, dim: int, **numbers: float) -> Any:
    rope = {"rope_theta": theta, "rope_type": "llama3", **numbers}
    plain = RopeParameters({"rope_theta": theta}, max_positions=1).table(dim).inverse_frequency
    return (plain / RopeParameters(rope, max_positions=1).table(dim).inverse_frequency).astype(np.float32)


@pytest.mark.parametrize(
    ("theta", "dim", "factor", "low", "high", "context"),
    [
        (500000.0, 128, 8.0, 1.0, 4.0, 8192),  # Llama 3.1
        (500000.0, 64, 32.0, 1.0, 4.0, 8192),  # Llama 3.2
        (5000.0, 24, 8.0, 1.0, 4.0, 32),
        (10000.0, 64, 4.0, 2.0, 8.0, 3000),
        (100000.0, 16, 8.0, 1.0, 4.0, 4096),
        (500000.0, 8, 8.0, 1.0, 2.0, 8192),
    ],
)
def test_a_table_of_factors_is_the_rotation_it_was_made_from(
    theta: float, dim: int, factor: float, low: float, high: float, context: int
) -> None:
    numbers = {
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": context,
    }
    table = factors_of(theta, dim, **numbers)
    found = fit_llama3(table, theta, dim, 131072)
    assert found["factor"] == factor
    again = factors_of(theta, dim, **{key: found[key] for key in numbers})
    np.testing.assert_allclose(again, table, rtol=3e-6)


def test_factors_of_one_scale_nothing() -> None:
    assert fit_llama3(np.ones(8, np.float32), 1e4, 16, 64) == {"rope_theta": 1e4, "rope_type": "default"}


@pytest.mark.parametrize(
    "table",
    [
        np.array([1, 3, 2, 8, 8, 8, 8, 8], np.float32),
        np.array([0.5] * 8, np.float32),
        np.array([1, 2, np.nan, 8, 8, 8, 8, 8], np.float32),
        np.ones(4, np.float32),
    ],
)
def test_any_other_table_is_refused(table: Any) -> None:
    with pytest.raises(UnsupportedError, match="table of factors"):
        fit_llama3(table, 1e4, 16, 64)
