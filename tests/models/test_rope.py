"""Rotations that hold for a part of the context only."""

from __future__ import annotations

import pytest

from tests.models.reads import tiny_fields
from zeropoint.errors import UnsupportedError
from zeropoint.models.families import derive, engine_of

LONG = {"type": "longrope", "short_factor": [1.5] * 8, "long_factor": [2.5] * 8}


def test_longrope_ends_the_context_where_its_other_frequencies_begin() -> None:
    config = {**tiny_fields("phi3"), "rope_scaling": LONG, "original_max_position_embeddings": 40}
    assert derive(config).config.max_positions == 40
    assert derive(tiny_fields("phi3")).config.max_positions == 128


def test_longrope_needs_a_factor_a_frequency() -> None:
    config = {**tiny_fields("phi3"), "rope_scaling": {**LONG, "short_factor": [1.5] * 7}}
    with pytest.raises(UnsupportedError, match="short_factor of 7 numbers"):
        derive(config)


def test_a_dynamic_rotation_is_the_plain_one_within_the_context() -> None:
    plain = derive(tiny_fields("llama_tied"))
    dynamic = derive({**tiny_fields("llama_tied"), "rope_scaling": {"type": "dynamic", "factor": 4.0}})
    assert (plain.ropes[0].inverse_frequency == dynamic.ropes[0].inverse_frequency).all()


def test_the_engine_of_a_config_comes_with_a_reason() -> None:
    assert engine_of(tiny_fields("qwen2")) == {"name": "native", "reason": ""}
    refused = engine_of({**tiny_fields("qwen2"), "is_causal": False})
    assert refused["name"] == "universal"
    assert "is_causal = False" in refused["reason"]
    parts = engine_of({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    assert "several parts" in parts["reason"]
    assert "gemma3_text" in parts["reason"]
