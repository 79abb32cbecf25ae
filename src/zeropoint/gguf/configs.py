"""A GGUF header as the config.json of the same model: the inverse of `families.Description.write_metadata`."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

from zeropoint.errors import CheckpointError, UnsupportedError

#: config.json's field -> GGUF's key below the architecture's name. The first set must be there.
NEEDED = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
GPT2 = {
    "n_layer": "block_count",
    "n_embd": "embedding_length",
    "n_inner": "feed_forward_length",
    "n_head": "attention.head_count",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}

#: GGUF architecture -> what its config.json says beside the sizes.
FIXED: Mapping[str, Mapping[str, Any]] = {
    "llama": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
    "qwen2": {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    "qwen3": {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
    "gemma": {
        "model_type": "gemma",
        "architectures": ["GemmaForCausalLM"],
        "hidden_act": "gelu_pytorch_tanh",
    },
    "gpt2": {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
}


def config_of(metadata: Mapping[str, Any], tensors: Container[str], vocab_size: int) -> dict[str, Any]:
    """The config.json of the model in a GGUF file.

    Raises `UnsupportedError` for an architecture or a rotation that is not known here, `CheckpointError` when a size is
    missing, or `vocab_size`, the embedding's rows, are fewer than the tokens.
    """
    arch = metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in FIXED:
        raise UnsupportedError(
            f"GGUF architecture {str(arch)[:40]!r} is not imported: {', '.join(FIXED)} are"
        )
    tokens = metadata.get("tokenizer.ggml.tokens")
    stated = metadata.get(f"{arch}.vocab_size", len(tokens) if isinstance(tokens, list) else vocab_size)
    if type(stated) is not int or stated > vocab_size:
        raise CheckpointError(
            f"its header says {str(stated)[:40]} tokens, its embedding has {vocab_size} rows"
        )
    fields = GPT2 if arch == "gpt2" else NEEDED
    config: dict[str, Any] = {**FIXED[arch], "vocab_size": vocab_size, "dtype": "float32"}
    for field, key in fields.items():
        value = metadata.get(f"{arch}.{key}")
        if value is None:
            raise CheckpointError(f"its header has no {arch}.{key}")
        config[field] = value
    if arch != "gpt2":
        config |= _beside(metadata, arch, tensors)
    config["tie_word_embeddings"] = "output.weight" not in tensors
    for name in ("bos", "eos", "pad"):
        number = metadata.get(
            f"tokenizer.ggml.{name}_token_id", metadata.get("tokenizer.ggml.padding_token_id")
        )
        if number is not None:
            config[f"{name}_token_id"] = number
    return config


def _beside(metadata: Mapping[str, Any], arch: str, tensors: Container[str]) -> dict[str, Any]:
    found = {
        field: metadata[f"{arch}.{key}"] for field, key in OPTIONAL.items() if f"{arch}.{key}" in metadata
    }
    found["rope_parameters"] = _rope(metadata, arch)
    if "rope_freqs.weight" in tensors:
        raise UnsupportedError(
            "its rotation is scaled by a table of factors, which config.json cannot express"
        )
    if arch == "llama":
        found["attention_bias"] = "blk.0.attn_q.bias" in tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in tensors
    return found


def _rope(metadata: Mapping[str, Any], arch: str) -> dict[str, Any]:
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    rope = {"rope_theta": metadata.get(f"{arch}.rope.freq_base", 10_000.0), "rope_type": "default"}
    if isinstance(kind, str) and kind == "none":
        return rope
    if not isinstance(kind, str) or kind not in ("linear", "yarn"):
        raise UnsupportedError(f"its rotation is scaled by {str(kind)[:40]!r}, which is not known here")
    rope |= {"rope_type": kind, "factor": metadata.get(f"{arch}.rope.scaling.factor", 1.0)}
    original = metadata.get(f"{arch}.rope.scaling.original_context_length")
    return (
        rope
        if kind == "linear" or original is None
        else rope | {"original_max_position_embeddings": original}
    )
