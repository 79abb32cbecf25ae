"""A small int8 model with random weights, made without torch."""

from __future__ import annotations

from functools import cache

import numpy as np

from zeropoint.models.families import derive
from zeropoint.reference.rounding import quantize_min_max
from zeropoint.runtime.native.library import Decoder, Weight, pack
from zeropoint.values.scheme import parse

VOCAB, CONTEXT = 260, 1024


@cache
def small_decoder(seed: int = 0) -> Decoder:
    """Return a Llama of two layers with a context of `CONTEXT` tokens."""
    record = derive(
        {
            "model_type": "llama",
            "vocab_size": VOCAB,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": CONTEXT,
            "rms_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
        }
    )
    rng, packed = np.random.default_rng(seed), dict[str, Weight]()
    for _, _, linear in record.linears():
        if linear.weight not in packed:
            weight = rng.normal(0, 0.2, linear.shape).astype(np.float32)
            packed[linear.weight] = pack(quantize_min_max(weight, parse("int8")))
    weights = {(number, slot): packed[linear.weight] for number, slot, linear in record.linears()}
    vectors = {norm.weight: np.ones(norm.size, np.float32) for _, _, norm in record.norms() if norm.weight}
    return Decoder(record, weights, vectors)
