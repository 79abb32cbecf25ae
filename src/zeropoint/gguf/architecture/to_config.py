"""Conversion of a GGUF header to the config.json of the same model. `to_header.py` is the inverse.

Each config field comes from the header, or from llama.cpp's default if the header may leave it out. Only fields that
transformers knows for the family are set.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.gguf.architecture.families import FAMILIES, MODEL_TYPES, Family
from zeropoint.gguf.architecture.header import Header
from zeropoint.gguf.architecture.rotations import Factors, rope_parameters
from zeropoint.gguf.architecture.to_header import default_slides

ARCHITECTURES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma": "GemmaForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi": "PhiForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "olmo": "OlmoForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
    "starcoder2": "Starcoder2ForCausalLM",
    "stablelm": "StableLmForCausalLM",
    "granite": "GraniteForCausalLM",
    "smollm3": "SmolLM3ForCausalLM",
    "gpt_neox": "GPTNeoXForCausalLM",
    "cohere": "CohereForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}

#: Families whose config.json must state head_dim: transformers' default is a fixed number.
STATE_HEAD_DIM = frozenset({"gemma", "gemma2", "gemma3_text", "qwen3"})

#: Number of layers of the largest Gemma 2 and 3. For these llama.cpp scales attention by hidden_size / heads, for the
#: smaller ones by head_dim.
LARGEST_GEMMA = {"gemma2": 46, "gemma3_text": 62}


def config_of(
    metadata: Mapping[str, Any], tensors: Container[str], vocab_size: int, factors: Factors | None = None
) -> dict[str, Any]:
    """Return the config.json of the model in a GGUF file, without the special token ids.

    `tensors` are the tensor names in the file, `vocab_size` the number of rows of the embedding. `factors` reads the
    tensor `rope_freqs.weight`. Raises `UnsupportedError` for an architecture, rotation or field that Zeropoint does not
    know, `CheckpointError` if the header lacks a size or does not match the tensors.
    """
    header = Header(metadata, tensors)
    model_type = _model_type(header)
    family = FAMILIES[model_type]
    tokens = metadata.get("tokenizer.ggml.tokens")
    stated = header.get("vocab_size")
    stated = stated if stated is not None else len(tokens) if isinstance(tokens, list) else vocab_size
    if type(stated) is not int or stated > vocab_size:
        raise CheckpointError(
            f"its header says {str(stated)[:40]} tokens, its embedding has {vocab_size} rows"
        )
    config: dict[str, Any] = {
        "model_type": model_type,
        "architectures": [ARCHITECTURES[model_type]],
        "vocab_size": vocab_size,
        "dtype": "float32",
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if model_type == "gpt2":
        return config | _gpt2(header)
    config |= _sizes(header, model_type)
    config |= rope_parameters(header, model_type, config, factors)
    config |= _windows(header, model_type, family, config["num_hidden_layers"])
    if model_type in SPECIFIC:
        config |= SPECIFIC[model_type](header, config)
    return config


def _model_type(header: Header) -> str:
    """Return transformers' model type. A sliding window tells Mistral from Llama, and OLMo 3 from OLMo 2."""
    sliding = header.get("attention.sliding_window")
    if header.arch == "llama" and sliding:
        return "mistral"
    if header.arch == "olmo2" and sliding:
        return "olmo3"
    return MODEL_TYPES[header.arch]


def _sizes(header: Header, model_type: str) -> dict[str, Any]:
    """Return the config fields for sizes and the norms' epsilon."""
    heads, hidden = header.whole("attention.head_count"), header.whole("embedding_length")
    usual = max(hidden // heads, 1)
    size = header.whole("attention.key_length", usual)
    if header.whole("attention.value_length", usual) != size:
        raise UnsupportedError("its keys and values differ in size")
    sizes = {
        "hidden_size": hidden,
        "intermediate_size": header.whole("feed_forward_length"),
        "num_hidden_layers": header.whole("block_count"),
        "num_attention_heads": heads,
        "max_position_embeddings": header.whole("context_length"),
    }
    if model_type != "gpt_neox":
        sizes["num_key_value_heads"] = header.whole("attention.head_count_kv", heads)
    if model_type in STATE_HEAD_DIM or size * heads != hidden:
        sizes["head_dim"] = size
    epsilon = {"starcoder2": "norm_epsilon"}.get(model_type, "layer_norm_eps")
    if header.has("attention.layer_norm_rms_epsilon"):
        return sizes | {"rms_norm_eps": header.number("attention.layer_norm_rms_epsilon")}
    if model_type == "olmo":  # transformers' code hard-codes the epsilon
        if header.number("attention.layer_norm_epsilon") != 1e-5:
            raise UnsupportedError("its norms have another epsilon than OLMo's")
        return sizes
    return sizes | {epsilon: header.number("attention.layer_norm_epsilon")}


def _gpt2(header: Header) -> dict[str, Any]:
    """Return GPT-2's config fields, which have names of their own."""
    return {
        "n_layer": header.whole("block_count"),
        "n_embd": header.whole("embedding_length"),
        "n_inner": header.whole("feed_forward_length"),
        "n_head": header.whole("attention.head_count"),
        "n_positions": header.whole("context_length"),
        "layer_norm_epsilon": header.number("attention.layer_norm_epsilon"),
    }


# -- windows --------------------------------------------------------------------------------------


def _windows(header: Header, model_type: str, family: Family, layers: int) -> dict[str, Any]:
    """Return the config fields for sliding-window attention."""
    window = header.get("attention.sliding_window")
    if model_type in ("phi3", "mistral", "starcoder2"):
        return {"sliding_window": window or None}
    if family.windows != "period" or model_type == "olmo2":
        return {}
    if not window and model_type == "gemma2":
        window = 4096
    if not window:
        return {"layer_types": ["full_attention"] * layers, "sliding_window": None}
    slides = default_slides(family, layers)
    pattern = header.get("attention.sliding_window_pattern")
    if isinstance(pattern, np.ndarray):
        if len(pattern) < layers:
            raise CheckpointError("its header lists fewer sliding layers than it has layers")
        slides = [bool(each) for each in pattern[:layers]]
    elif type(pattern) is int and pattern >= 0:
        slides = [pattern == 0 or layer % pattern < pattern - 1 for layer in range(layers)]
    elif pattern is not None:
        raise CheckpointError("its header's pattern of sliding layers is not a list of flags")
    types = ["sliding_attention" if each else "full_attention" for each in slides]
    return {"layer_types": types, "sliding_window": header.whole("attention.sliding_window", window)}


# -- further fields of each family ------------------------------------------------------------------
#
# Each function returns the config fields that only some families have.


def _bias(header: Header, name: str) -> bool:
    """Return whether the first layer's projection `name` has a bias."""
    return f"blk.0.{name}.bias" in header.tensors


def _llama(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether attention and MLP have biases."""
    return {"attention_bias": _bias(header, "attn_q"), "mlp_bias": _bias(header, "ffn_up")}


def _attention_bias(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return whether attention has biases."""
    return {"attention_bias": _bias(header, "attn_q")}


def _gemma1(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Gemma 1."""
    return {"hidden_act": "gelu_pytorch_tanh"} | _attention_bias(header, config)


def _gemma(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Gemma 2 and 3: activation, soft caps, and the factor on attention logits."""
    model_type, size = config["model_type"], config["head_dim"]
    if config["num_hidden_layers"] == LARGEST_GEMMA[model_type]:
        size = config["hidden_size"] // config["num_attention_heads"]
    old = model_type == "gemma2"
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": size,
        "attn_logit_softcapping": header.number("attn_logit_softcapping", 50.0) if old else None,
        "final_logit_softcapping": header.number("final_logit_softcapping", 30.0 if old else 0.0) or None,
        **_attention_bias(header, config),
    }


def _stablelm(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of StableLM."""
    parallel = "blk.0.ffn_norm.weight" not in header.tensors
    return {"use_qkv_bias": _bias(header, "attn_q"), "use_parallel_residual": parallel}


def _granite(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the multipliers of Granite, and its biases."""
    if not header.flag("rope.scaling.finetuned", True):
        raise UnsupportedError("its layers have no rotation")
    size = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    return {
        "embedding_multiplier": header.number("embedding_scale", 1.0) or 1.0,
        "residual_multiplier": header.number("residual_scale", 1.0) or 1.0,
        "attention_multiplier": header.number("attention.scale", 0.0) or size**-0.5,
        "logits_scaling": header.number("logit_scale"),
        **_llama(header, config),
    }


def _gpt_neox(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of GPT-NeoX."""
    # The header does not state the form of GELU. Published models use the exact form, llama.cpp the tanh form
    return {
        "hidden_act": "gelu",
        "use_parallel_residual": header.flag("use_parallel_residual", True),
        "attention_bias": _bias(header, "attn_qkv"),
    }


def _cohere(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of Cohere."""
    return {"logit_scale": header.number("logit_scale", 1.0) or 1.0, **_attention_bias(header, config)}


def _smollm3(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of SmolLM3, of which every fourth layer has no rotation."""
    return {"no_rope_layer_interval": 4, "use_sliding_window": False, **_llama(header, config)}


def _starcoder2(header: Header, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of StarCoder 2."""
    return {"use_bias": _bias(header, "attn_q"), "hidden_act": "gelu_pytorch_tanh"}


SPECIFIC: Mapping[str, Callable[[Header, Mapping[str, Any]], dict[str, Any]]] = {
    "llama": _llama,
    "granite": _granite,
    "smollm3": _smollm3,
    "qwen3": _attention_bias,
    "gemma": _gemma1,
    "gemma2": _gemma,
    "gemma3_text": _gemma,
    "olmo": _attention_bias,
    "olmo2": _attention_bias,
    "olmo3": _attention_bias,
    "stablelm": _stablelm,
    "gpt_neox": _gpt_neox,
    "cohere": _cohere,
    "starcoder2": _starcoder2,
}
