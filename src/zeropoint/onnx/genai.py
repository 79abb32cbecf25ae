"""genai_config.json, onnxruntime-genai's description of a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropoint.models.spec import DecoderConfig

#: Model types that onnxruntime-genai 0.18 knows by name. Any other decoder with a KV cache has the type `ANY`. "gpt2"
#: is missing because onnxruntime-genai expects a graph with other inputs under that name.
TYPES = frozenset({
    "gemma", "gemma2", "gemma3_text", "granite", "llama", "mistral", "olmo", "phi", "phi3", "qwen2", "qwen3", "smollm3",
})  # fmt: skip
ANY = "decoder"

#: Fields of generation_config.json that onnxruntime-genai's search supports, with their defaults.
SEARCH: Mapping[str, Any] = {
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}


def genai_config(
    config: Mapping[str, Any], generation: Mapping[str, Any], sizes: DecoderConfig, filename: str
) -> dict[str, Any]:
    """Return the contents of genai_config.json.

    `config` and `generation` are the contents of config.json and generation_config.json, `filename` is the graph's.
    """
    settings = {**config, **{key: value for key, value in generation.items() if value is not None}}
    ends = settings.get("eos_token_id")
    first_end = ends[0] if isinstance(ends, list) and ends else ends
    padding = settings.get("pad_token_id")
    tokens = {
        "bos_token_id": settings.get("bos_token_id"),
        "eos_token_id": ends,
        "pad_token_id": first_end if padding is None else padding,
    }
    search = {key: generation.get(key, value) for key, value in SEARCH.items()}
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": filename,
        "head_size": sizes.head_dim,
        "hidden_size": sizes.hidden,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "num_key_value_heads": sizes.kv_heads,
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    return {
        "model": {
            "type": config["model_type"] if config["model_type"] in TYPES else ANY,
            "context_length": sizes.max_positions,
            "vocab_size": sizes.vocab,
            **{key: value for key, value in tokens.items() if value is not None},
            "decoder": decoder,
        },
        "search": {
            **search,
            "max_length": sizes.max_positions,
            "min_length": 0,
            "num_beams": 1,
            "num_return_sequences": 1,
            "past_present_share_buffer": True,
        },
    }
