"""Tiny Hugging Face checkpoints for tests, with seeded random weights and a byte-level tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

VOCABULARY = 260

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}

#: Name -> (config class of transformers, its fields).
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama_tied": ("LlamaConfig", {**_COMMON, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama_untied": ("LlamaConfig", {**_COMMON, "num_key_value_heads": 2, "tie_word_embeddings": False}),
    "gpt2": (
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": 64,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "bos_token_id": 256,
            "eos_token_id": 257,
            "pad_token_id": 258,
        },
    ),
    "qwen2": ("Qwen2Config", {**_COMMON, "num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", {**_COMMON, "num_key_value_heads": 2, "head_dim": 16}),
    "gemma2": (
        "Gemma2Config",
        {**_COMMON, "num_key_value_heads": 2, "head_dim": 16, "sliding_window": 32, "query_pre_attn_scalar": 16},
    ),
    "mistral": ("MistralConfig", {**_COMMON, "num_key_value_heads": 2, "sliding_window": 32}),
    "phi": ("PhiConfig", _COMMON),
    "opt": (
        "OPTConfig",
        {
            **{k: v for k, v in _COMMON.items() if k != "intermediate_size"},
            "ffn_dim": 96,
            "word_embed_proj_dim": 64,
        },
    ),
    "bloom": (
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": 64, "n_layer": 2, "n_head": 4, "bos_token_id": 256,
         "eos_token_id": 257, "pad_token_id": 258},
    ),
    "gpt_neox": ("GPTNeoXConfig", _COMMON),
    "mixtral": (
        "MixtralConfig",
        {**_COMMON, "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "qwen2_moe": (
        "Qwen2MoeConfig",
        {**_COMMON, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "decoder_sparse_step": 1},
    ),
}  # fmt: skip


#: Models for tests that run every architecture.
ARCHITECTURES = tuple(CONFIGS)

_GROUPED = {**_COMMON, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 16}

#: Further models of the native engine, which the slow tests of every architecture omit.
NATIVE_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama3_rope": (
        "LlamaConfig",
        {**_GROUPED, "attention_bias": True, "mlp_bias": True, "head_dim": 24, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "yarn_rope": (
        "Qwen2Config",
        {**_GROUPED, "tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}},
    ),
    "linear_rope": (
        "LlamaConfig",
        {**_GROUPED, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5}},
    ),
    "qwen2_windows": (
        "Qwen2Config",
        {**_GROUPED, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "mistral_short": ("MistralConfig", {**_GROUPED, "sliding_window": 5}),
    "gemma": ("GemmaConfig", {**_GEMMA, "num_key_value_heads": 1}),
    "gemma2_short": ("Gemma2Config", {**_GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 24}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {**_GEMMA, "sliding_window": 5, "num_hidden_layers": 3, "sliding_window_pattern": 2,
         "query_pre_attn_scalar": 24},
    ),
    "phi3": ("Phi3Config", {**_GROUPED, "sliding_window": 7}),
    "phi3_partial": (
        "Phi3Config",
        {**_GROUPED, "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}},
    ),
    "olmo": ("OlmoConfig", _GROUPED),
    "olmo2": ("Olmo2Config", _GROUPED),
    "olmo3": ("Olmo3Config", {**_GROUPED, "sliding_window": 5, "num_hidden_layers": 4}),
    "starcoder2": ("Starcoder2Config", _GROUPED),
    "gpt_neox_serial": ("GPTNeoXConfig", {**_COMMON, "use_parallel_residual": False, "attention_bias": False}),
    "smollm3": ("SmolLM3Config", {**_GROUPED, "num_hidden_layers": 4}),
    "granite": (
        "GraniteConfig",
        {**_GROUPED, "embedding_multiplier": 3.0, "residual_multiplier": 0.7, "attention_multiplier": 0.2,
         "logits_scaling": 2.0},
    ),
    "stablelm": ("StableLmConfig", {**_GROUPED, "use_qkv_bias": True}),
    "stablelm_parallel": ("StableLmConfig", {**_GROUPED, "use_parallel_residual": True}),
    "cohere": ("CohereConfig", _GROUPED),
}  # fmt: skip

#: Models that the native engine supports.
NATIVE = tuple(name for name in (*CONFIGS, *NATIVE_CONFIGS) if name not in ("bloom", "mixtral", "qwen2_moe"))


def make_checkpoint(
    name: str,
    folder: Path,
    *,
    hidden_size: int | None = None,
    layers: int | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    max_shard_size: str = "50GB",
    outliers: bool | None = None,
) -> Path:
    """Write the checkpoint of one of `ARCHITECTURES` or `NATIVE` to `folder` and return the folder.

    With `outliers`, weights are distributed like trained ones: heavier tails, and a few channels ten times larger. The
    default is True for GPT-2 only, because its trained weights have outliers.
    """
    class_name, fields = {**CONFIGS, **NATIVE_CONFIGS}[name]
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": layers}
    changes = {key: value for key, value in sizes.items() if value is not None}
    config = getattr(transformers, class_name)(**{**fields, **changes})
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    if outliers if outliers is not None else name == "gpt2":
        _trained_like(model, seed)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    write_tokenizer(folder)
    return folder


def _trained_like(model: torch.nn.Module, seed: int) -> None:
    """Change the weights in place to a distribution with heavy tails and outlier channels."""
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim != 2:
                continue
            parameter.mul_(4)
            parameter.add_(parameter.pow(3) * 20)
            if "wte" not in name and "wpe" not in name:
                rows = torch.randperm(parameter.shape[0], generator=generator)[:3]
                parameter[rows] *= 10


#: A few words for a SentencePiece vocabulary.
WORDS = ("\u2581the", "\u2581then", "\u2581hat", "\u2581tea")


def write_sentencepiece(folder: Path, words: Sequence[str], *, prefix: bool) -> int:
    """Write a tokenizer of bytes, letters and prefixes of `words`, in the form that SentencePiece models have.

    With `prefix`, the tokenizer puts a space before each text, like Llama 2's; without, it does not, like Gemma's.
    Returns the number of tokens.
    """
    letters = ["\u2581", *sorted({letter for word in words for letter in word if letter != "\u2581"})]
    pieces = list(dict.fromkeys(word[:end] for end in range(2, 12) for word in words if len(word) >= end))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *pieces]
    token_set = set(tokens)
    merges = [
        (piece[:i], piece[i:])
        for piece in pieces
        for i in range(1, len(piece))
        if piece[:i] in token_set and piece[i:] in token_set
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = (
        normalizers.Sequence([normalizers.Prepend("\u2581"), replace]) if prefix else replace
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return len(tokens)


def write_tokenizer(folder: Path, merges: Sequence[tuple[str, str]] = ()) -> None:
    """Write a byte-level tokenizer for `AutoTokenizer`: 259 tokens, plus one per merge."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: index for index, symbol in enumerate(alphabet)}
    specials = ["<s>", "</s>", "<pad>"]
    vocabulary |= {symbol: len(alphabet) + index for index, symbol in enumerate(specials)}
    vocabulary |= {"".join(pair): len(vocabulary) + index for index, pair in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(merges)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(specials)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "model_max_length": 128,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
