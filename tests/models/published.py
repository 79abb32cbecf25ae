"""The config.json of published models, typed in as data: what people bring, with all the fields that nobody needs.

`MODELS` maps a name to (config.json, parameters in millions, the field that keeps it from the native engine or "").
"""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]


def llama(**fields: Any) -> Fields:
    """Fields that configs of Llama's shape share; the rest is each model's own."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "bos_token_id": 1,
        "eos_token_id": 2, "initializer_range": 0.02, "use_cache": True, "pretraining_tp": 1, "rope_scaling": None,
        "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0", **fields,
    }  # fmt: skip


def sizes(
    hidden: int, intermediate: int, layers: int, heads: int, kv: int | None, vocab: int, context: int
) -> Fields:
    """The seven sizes under their usual names; no `kv` where the config does not say."""
    found = {
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab,
        "max_position_embeddings": context,
    }  # fmt: skip
    return {key: value for key, value in found.items() if value is not None}


LLAMA3_ROPE = {"high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
               "rope_type": "llama3"}  # fmt: skip
LLAMA3 = {"attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000, "mlp_bias": False,
          "rms_norm_eps": 1e-05, "rope_theta": 500000.0, "torch_dtype": "bfloat16"}  # fmt: skip
QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "attention_dropout": 0.0,
         "bos_token_id": 151643, "eos_token_id": 151645, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
         "use_sliding_window": False, "torch_dtype": "bfloat16"}  # fmt: skip
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "head_dim": 128,
         "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645, "rms_norm_eps": 1e-06,
         "rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "use_sliding_window": False}  # fmt: skip
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "rms_norm_eps": 1e-05,
           "torch_dtype": "bfloat16"}  # fmt: skip
GEMMA = {"architectures": ["GemmaForCausalLM"], "model_type": "gemma", "attention_bias": False, "bos_token_id": 2,
         "eos_token_id": 1, "pad_token_id": 0, "head_dim": 256, "rms_norm_eps": 1e-06, "rope_theta": 10000.0,
         "rope_scaling": None, "initializer_range": 0.02}  # fmt: skip
GEMMA2 = {**GEMMA, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attn_logit_softcapping": 50.0,
          "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "hidden_act": "gelu_pytorch_tanh",
          "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "sliding_window": 4096,
          "sliding_window_size": 4096}  # fmt: skip
GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False,
          "attention_dropout": 0.0, "attn_logit_softcapping": None, "final_logit_softcapping": None,
          "bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0, "head_dim": 256,
          "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
          "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
          "cache_implementation": "hybrid"}  # fmt: skip
PHI = {"architectures": ["PhiForCausalLM"], "model_type": "phi", "attention_dropout": 0.0, "bos_token_id": None,
       "embd_pdrop": 0.0, "eos_token_id": None, "hidden_act": "gelu_new", "layer_norm_eps": 1e-05,
       "num_key_value_heads": None, "partial_rotary_factor": 0.5, "qk_layernorm": False, "resid_pdrop": 0.0,
       "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": False}  # fmt: skip
PHI3 = {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config",
                     "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"},
        "bos_token_id": 1, "embd_pdrop": 0.0, "eos_token_id": 32000, "hidden_act": "silu",
        "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "use_cache": True}  # fmt: skip
OLMO = {"architectures": ["OlmoForCausalLM"], "model_type": "olmo", "attention_bias": False, "attention_dropout": 0.0,
        "clip_qkv": None, "eos_token_id": 50279, "pad_token_id": 1, "hidden_act": "silu", "rope_scaling": None,
        "rope_theta": 10000.0}  # fmt: skip
NEOX = {"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0,
        "hidden_act": "gelu", "layer_norm_eps": 1e-05, "rotary_emb_base": 10000, "rotary_pct": 0.25,
        "tie_word_embeddings": False, "use_parallel_residual": True}  # fmt: skip
GPT2 = {"activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_positions": 1024, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 50257,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}}  # fmt: skip
OPT = {"_remove_final_layer_norm": False, "activation_dropout": 0.0, "activation_function": "relu",
       "architectures": ["OPTForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 2, "dropout": 0.1,
       "eos_token_id": 2, "init_std": 0.02, "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt",
       "pad_token_id": 1, "prefix": "</s>", "use_cache": True, "vocab_size": 50272}  # fmt: skip
STABLELM = {"architectures": ["StableLmForCausalLM"], "model_type": "stablelm", "hidden_act": "silu",
            "layer_norm_eps": 1e-05, "partial_rotary_factor": 0.25, "rope_theta": 10000, "hidden_dropout": 0.0,
            "attention_dropout": 0.0, "rotary_scaling_factor": 1.0}  # fmt: skip
GRANITE = {"architectures": ["GraniteForCausalLM"], "model_type": "granite", "attention_bias": False,
           "attention_dropout": 0.1, "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "silu", "mlp_bias": False,
           "pad_token_id": 0, "rms_norm_eps": 1e-05, "rope_scaling": None, "tie_word_embeddings": True}  # fmt: skip
STARCODER2 = {"activation_function": "gelu", "architectures": ["Starcoder2ForCausalLM"], "attention_dropout": 0.1,
              "attention_softmax_in_fp32": True, "bos_token_id": 0, "eos_token_id": 0, "embedding_dropout": 0.1,
              "hidden_act": "gelu_pytorch_tanh", "layer_norm_epsilon": 1e-05, "mlp_type": "default",
              "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm", "residual_dropout": 0.1,
              "scale_attention_softmax_in_fp32": True, "scale_attn_weights": True, "sliding_window": 4096,
              "use_bias": True}  # fmt: skip
COHERE = {"architectures": ["CohereForCausalLM"], "model_type": "cohere", "attention_bias": False,
          "attention_dropout": 0.0, "bos_token_id": 5, "eos_token_id": 255001, "hidden_act": "silu",
          "layer_norm_eps": 1e-05, "logit_scale": 0.0625, "model_max_length": 131072, "pad_token_id": 0,
          "use_qk_norm": False}  # fmt: skip

MODELS: dict[str, tuple[Fields, float, str]] = {
    "meta-llama/Llama-2-7b-hf": (
        llama(**sizes(4096, 11008, 32, 32, 32, 32000, 4096), rms_norm_eps=1e-05), 6738, ""),
    "meta-llama/Llama-2-70b-hf": (
        llama(**sizes(8192, 28672, 80, 64, 8, 32000, 4096), rms_norm_eps=1e-05), 68977, ""),
    "meta-llama/Meta-Llama-3-8B": (
        llama(**sizes(4096, 14336, 32, 32, 8, 128256, 8192), **LLAMA3, eos_token_id=128001), 8030, ""),
    "meta-llama/Llama-3.1-8B-Instruct": (
        llama(**sizes(4096, 14336, 32, 32, 8, 128256, 131072),
              **{**LLAMA3, "rope_scaling": {"factor": 8.0, **LLAMA3_ROPE}}, eos_token_id=[128001, 128008, 128009]),
        8030, ""),
    "meta-llama/Llama-3.2-1B": (
        llama(**sizes(2048, 8192, 16, 32, 8, 128256, 131072),
              **{**LLAMA3, "rope_scaling": {"factor": 32.0, **LLAMA3_ROPE}}, head_dim=64, tie_word_embeddings=True,
              eos_token_id=128001), 1236, ""),
    "meta-llama/Llama-3.2-3B": (
        llama(**sizes(3072, 8192, 28, 24, 8, 128256, 131072),
              **{**LLAMA3, "rope_scaling": {"factor": 32.0, **LLAMA3_ROPE}}, head_dim=128, tie_word_embeddings=True),
        3213, ""),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        llama(**sizes(2048, 5632, 22, 32, 4, 32000, 2048), rms_norm_eps=1e-05, rope_theta=10000.0,
              attention_bias=False), 1100, ""),
    "HuggingFaceTB/SmolLM-135M": (
        llama(**sizes(576, 1536, 30, 9, 3, 49152, 2048), rms_norm_eps=1e-05, rope_theta=10000.0, bos_token_id=0,
              eos_token_id=0, tie_word_embeddings=True, attention_bias=False, attention_dropout=0.0), 135, ""),
    "HuggingFaceTB/SmolLM2-135M": (
        llama(**sizes(576, 1536, 30, 9, 3, 49152, 8192), rms_norm_eps=1e-05, rope_theta=100000, bos_token_id=0,
              eos_token_id=0, tie_word_embeddings=True, is_llama_config=True, rope_interleaved=False,
              initializer_range=0.041666666666666664), 135, ""),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": (
        llama(**sizes(2048, 8192, 24, 32, 32, 49152, 8192), rms_norm_eps=1e-05, rope_theta=130000,
              tie_word_embeddings=True, pad_token_id=2,
              **{"transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16", "fp16": "float16"}}}), 1711, ""),
    "HuggingFaceTB/SmolLM3-3B": (
        {"architectures": ["SmolLM3ForCausalLM"], "model_type": "smollm3", "attention_bias": False,
         "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": 128012, "hidden_act": "silu",
         **sizes(2048, 11008, 36, 16, 4, 128256, 65536), "layer_types": ["full_attention"] * 36,
         "max_window_layers": 28, "mlp_bias": False, "no_rope_layer_interval": 4,
         "no_rope_layers": [1, 1, 1, 0] * 9, "pad_token_id": 128004, "pretraining_tp": 2, "rms_norm_eps": 1e-06,
         "rope_scaling": None, "rope_theta": 5000000.0, "sliding_window": None, "use_sliding_window": False}, 3075, ""),
    "deepseek-ai/DeepSeek-R1-Distill-Llama-8B": (
        llama(**sizes(4096, 14336, 32, 32, 8, 128256, 131072),
              **{**LLAMA3, "rope_scaling": {"factor": 8.0, **LLAMA3_ROPE}}), 8030, ""),
    "01-ai/Yi-6B": (
        llama(**sizes(4096, 11008, 32, 32, 4, 64000, 4096), rms_norm_eps=1e-05, rope_theta=5000000.0, pad_token_id=0),
        6061, ""),
    "codellama/CodeLlama-7b-hf": (
        llama(**sizes(4096, 11008, 32, 32, 32, 32016, 16384), rms_norm_eps=1e-05, rope_theta=1000000), 6739, ""),
    "lmsys/vicuna-7b-v1.5": (
        llama(**sizes(4096, 11008, 32, 32, 32, 32000, 4096), rms_norm_eps=1e-05, pad_token_id=0,
              _name_or_path="vicuna-7b-v1.5"), 6738, ""),
    "lmsys/vicuna-7b-v1.5-16k": (
        llama(**{**sizes(4096, 11008, 32, 32, 32, 32000, 4096), "rope_scaling": {"factor": 4.0, "type": "linear"}},
              rms_norm_eps=1e-05, max_sequence_length=16384), 6738, ""),
    "deepseek-ai/deepseek-coder-6.7b-base": (
        llama(**{**sizes(4096, 11008, 32, 32, 32, 32256, 16384), "rope_scaling": {"factor": 4.0, "type": "linear"}},
              rms_norm_eps=1e-06, rope_theta=100000), 6740, ""),
    "mistralai/Mistral-7B-v0.1": (
        llama(**MISTRAL, **sizes(4096, 14336, 32, 32, 8, 32000, 32768), rope_theta=10000.0, sliding_window=4096), 7242, ""),
    "mistralai/Mistral-7B-Instruct-v0.3": (
        llama(**MISTRAL, **sizes(4096, 14336, 32, 32, 8, 32768, 32768), rope_theta=1000000.0, sliding_window=None,
              attention_dropout=0.0), 7248, ""),
    "mistralai/Mistral-Nemo-Instruct-2407": (
        llama(**MISTRAL, **sizes(5120, 14336, 40, 32, 8, 131072, 131072), rope_theta=1000000.0, sliding_window=None,
              head_dim=128, attention_dropout=0.0), 12248, ""),
    "HuggingFaceH4/zephyr-7b-beta": (
        llama(**MISTRAL, **sizes(4096, 14336, 32, 32, 8, 32000, 32768), rope_theta=10000.0, sliding_window=4096,
              pad_token_id=2, _name_or_path="mistralai/Mistral-7B-v0.1"), 7242, ""),
    "Qwen/Qwen1.5-0.5B": (
        llama(**{**QWEN2, **sizes(1024, 2816, 24, 16, 16, 151936, 32768), "max_window_layers": 21,
                 "sliding_window": 32768, "tie_word_embeddings": True}), 464, ""),
    "Qwen/Qwen2-0.5B": (
        llama(**{**QWEN2, **sizes(896, 4864, 24, 14, 2, 151936, 131072), "max_window_layers": 24,
                 "sliding_window": 131072, "tie_word_embeddings": True}), 494, ""),
    "Qwen/Qwen2.5-0.5B": (
        llama(**{**QWEN2, **sizes(896, 4864, 24, 14, 2, 151936, 32768), "max_window_layers": 24, "use_mrope": False,
                 "sliding_window": 32768, "tie_word_embeddings": True}), 494, ""),
    "Qwen/Qwen2.5-7B-Instruct": (
        llama(**{**QWEN2, **sizes(3584, 18944, 28, 28, 4, 152064, 32768), "max_window_layers": 28,
                 "sliding_window": 131072}), 7616, ""),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": (
        llama(**{**QWEN2, **sizes(1536, 8960, 28, 12, 2, 151936, 131072), "max_window_layers": 21, "rope_theta": 10000,
                 "sliding_window": 4096, "use_mrope": False, "eos_token_id": 151643}), 1777, ""),
    "Qwen/Qwen3-0.6B": (
        llama(**{**QWEN3, **sizes(1024, 3072, 28, 16, 8, 151936, 40960), "max_window_layers": 28,
                 "tie_word_embeddings": True}), 596, ""),
    "Qwen/Qwen3-8B": (
        llama(**{**QWEN3, **sizes(4096, 12288, 36, 32, 8, 151936, 40960), "max_window_layers": 36}), 8191, ""),
    "google/gemma-2b": (
        {**GEMMA, **sizes(2048, 16384, 18, 8, 1, 256000, 8192), "hidden_act": "gelu", "hidden_activation": None}, 2506, ""),
    "google/gemma-7b-it": (
        {**GEMMA, **sizes(3072, 24576, 28, 16, 16, 256000, 8192), "hidden_act": "gelu_pytorch_tanh",
         "hidden_activation": "gelu_pytorch_tanh"}, 8538, ""),
    "google/gemma-2-2b-it": ({**GEMMA2, **sizes(2304, 9216, 26, 8, 4, 256000, 8192)}, 2614, ""),
    "google/gemma-2-27b": (
        {**GEMMA2, **sizes(4608, 36864, 46, 32, 16, 256000, 8192), "head_dim": 128, "query_pre_attn_scalar": 144,
         "_attn_implementation": "eager"}, 27227, ""),
    "google/gemma-3-270m": (
        {**GEMMA3, **sizes(640, 2048, 18, 4, 1, 262144, 32768), "_sliding_window_pattern": 6, "sliding_window": 512,
         "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 3, "use_bidirectional_attention": False,
         "_model_name_or_path": "gemma-3-270m", "chunk_size_feed_forward": 0}, 268, ""),
    "google/gemma-3-1b-it": (
        {**GEMMA3, **sizes(1152, 6912, 26, 4, 1, 262144, 32768), "sliding_window": 512, "sliding_window_pattern": 6},
        1000, ""),
    "microsoft/phi-1_5": ({**PHI, **sizes(2048, 8192, 24, 32, None, 51200, 2048)}, 1418, ""),
    "microsoft/phi-2": (
        {**PHI, **sizes(2560, 10240, 32, 32, 32, 51200, 2048), "partial_rotary_factor": 0.4, "bos_token_id": 50256,
         "eos_token_id": 50256}, 2780, ""),
    "microsoft/Phi-3-mini-4k-instruct": (
        {**PHI3, **sizes(3072, 8192, 32, 32, 32, 32064, 4096), "rope_scaling": None, "sliding_window": 2047}, 3821, ""),
    "microsoft/Phi-3.5-mini-instruct": (
        {**PHI3, **sizes(3072, 8192, 32, 32, 32, 32064, 131072), "sliding_window": 262144,
         "rope_scaling": {"long_factor": [1.08] * 24 + [64.5] * 24, "short_factor": [1.0] * 24 + [2.8] * 24,
                          "type": "longrope"}}, 3821, ""),
    "microsoft/Phi-4-mini-instruct": (
        {**PHI3, **sizes(3072, 8192, 32, 24, 8, 200064, 131072), "sliding_window": 262144, "full_attn_mod": 1,
         "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False, "partial_rotary_factor": 0.75,
         "tie_word_embeddings": True, "bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999,
         "rope_scaling": {"long_factor": [1] + [32.0] * 47, "short_factor": [1.0] * 48, "type": "longrope"}}, 3836, ""),
    "microsoft/phi-4": (
        {**PHI3, **sizes(5120, 17920, 40, 40, 10, 100352, 16384), "original_max_position_embeddings": 16384,
         "rope_scaling": None, "rope_theta": 250000, "sliding_window": None, "bos_token_id": 100257}, 14660, ""),
    "allenai/OLMo-1B-hf": (
        {**OLMO, **sizes(2048, 8192, 16, 16, 16, 50304, 2048), "tie_word_embeddings": True}, 1177, ""),
    "allenai/OLMo-7B-hf": (
        {**OLMO, **sizes(4096, 11008, 32, 32, 32, 50304, 2048), "tie_word_embeddings": False}, 6888, ""),
    "allenai/OLMo-1.7-7B-hf": (
        {**OLMO, **sizes(4096, 11008, 32, 32, 32, 50304, 4096), "clip_qkv": 8.0, "tie_word_embeddings": False}, 6888,
        "clip_qkv"),
    "allenai/OLMo-2-0425-1B": (
        {**OLMO, "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "rms_norm_eps": 1e-06,
         **sizes(2048, 8192, 16, 16, 16, 100352, 4096), "rope_theta": 500000, "tie_word_embeddings": False}, 1485, ""),
    "allenai/Olmo-3-7B-Instruct": (
        {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "attention_bias": False,
         **sizes(4096, 11008, 32, 32, 32, 100278, 65536), "hidden_act": "silu", "rms_norm_eps": 1e-06,
         "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8, "sliding_window": 4096,
         "rope_theta": 500000, "tie_word_embeddings": False, "attention_dropout": 0.0,
         "rope_scaling": {"attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1, "factor": 8.0,
                          "original_max_position_embeddings": 8192, "rope_type": "yarn"}}, 7298, ""),
    "openai-community/gpt2": ({**GPT2, "n_embd": 768, "n_head": 12, "n_layer": 12}, 124, ""),
    "openai-community/gpt2-xl": (
        {**GPT2, "n_embd": 1600, "n_head": 25, "n_layer": 48, "output_past": True}, 1558, ""),
    "distilbert/distilgpt2": (
        {**GPT2, "_num_labels": 1, "n_embd": 768, "n_head": 12, "n_layer": 6, "id2label": {"0": "LABEL_0"},
         "label2id": {"LABEL_0": 0}}, 82, ""),
    "EleutherAI/pythia-70m": (
        {**NEOX, **sizes(512, 2048, 6, 8, None, 50304, 2048), "initializer_range": 0.02}, 70.4, ""),
    "EleutherAI/pythia-1.4b-deduped": ({**NEOX, **sizes(2048, 8192, 24, 16, None, 50304, 2048)}, 1415, ""),
    "EleutherAI/gpt-neox-20b": (
        {**NEOX, **sizes(6144, 24576, 44, 64, None, 50432, 2048), "hidden_act": "gelu_fast", "attention_probs_dropout_prob": 0,
         "hidden_dropout_prob": 0}, 20554, ""),
    "facebook/opt-125m": (
        {**OPT, "do_layer_norm_before": True, "ffn_dim": 3072, "hidden_size": 768, "num_attention_heads": 12,
         "num_hidden_layers": 12, "word_embed_proj_dim": 768}, 125, ""),
    "facebook/opt-350m": (
        {**OPT, "do_layer_norm_before": False, "ffn_dim": 4096, "hidden_size": 1024, "num_attention_heads": 16,
         "num_hidden_layers": 24, "word_embed_proj_dim": 512}, 331, "do_layer_norm_before"),
    "facebook/opt-1.3b": (
        {**OPT, "do_layer_norm_before": True, "ffn_dim": 8192, "hidden_size": 2048, "num_attention_heads": 32,
         "num_hidden_layers": 24, "word_embed_proj_dim": 2048}, 1316, ""),
    "stabilityai/stablelm-2-1_6b": (
        {**STABLELM, **sizes(2048, 5632, 24, 32, 32, 100352, 4096), "use_qkv_bias": True, "rms_norm_eps": 1e-05}, 1645, ""),
    "stabilityai/stablelm-3b-4e1t": (
        {**STABLELM, **sizes(2560, 6912, 32, 32, 32, 50304, 4096), "use_qkv_bias": False, "rotary_scaling_factor": 1.0},
        2795, ""),
    "stabilityai/stablelm-2-12b": (
        {**STABLELM, **sizes(5120, 13824, 40, 32, 8, 100352, 4096), "qk_layernorm": True, "use_parallel_residual": True},
        12143, "qk_layernorm"),
    "bigcode/starcoder2-3b": (
        {**STARCODER2, **sizes(3072, 12288, 30, 24, 2, 49152, 16384), "rope_theta": 999999.4420358813}, 3030, ""),
    "bigcode/starcoder2-15b": (
        {**STARCODER2, **sizes(6144, 24576, 40, 48, 4, 49152, 16384), "rope_theta": 100000, "tie_word_embeddings": False}, 15958, ""),
    "ibm-granite/granite-3.1-2b-instruct": (
        {**GRANITE, **sizes(2048, 8192, 40, 32, 8, 49155, 131072), "attention_multiplier": 0.015625,
         "embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.22, "rope_theta": 5000000.0},
        2534, ""),
    "ibm-granite/granite-3.3-8b-instruct": (
        {**GRANITE, **sizes(4096, 12800, 40, 32, 8, 49159, 131072), "attention_multiplier": 0.0078125,
         "embedding_multiplier": 12.0, "logits_scaling": 16.0, "residual_multiplier": 0.22, "rope_theta": 10000000.0},
        8171, ""),
    "CohereForAI/c4ai-command-r-v01": (
        {**COHERE, **sizes(8192, 22528, 40, 64, 64, 256000, 8192), "rope_theta": 8000000.0}, 34981, ""),
    "CohereForAI/aya-23-8B": (
        {**COHERE, **sizes(4096, 14336, 32, 32, 8, 256000, 8192), "rope_theta": 10000}, 8028, ""),
    "CohereForAI/c4ai-command-r-plus": (
        {**COHERE, **sizes(12288, 33792, 64, 96, 8, 256000, 8192), "logit_scale": 0.8333333333333334,
         "rope_theta": 75000000.0, "use_qk_norm": True}, 103811, "use_qk_norm"),
    "mistralai/Mixtral-8x7B-v0.1": (
        llama(**{**MISTRAL, "model_type": "mixtral"}, **sizes(4096, 14336, 32, 32, 8, 32000, 32768),
              num_local_experts=8, num_experts_per_tok=2), 46703, "model_type"),
    "bigscience/bloom-560m": (
        {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_layer": 24, "hidden_size": 1024,
         "vocab_size": 250880}, 559, "model_type"),
}  # fmt: skip
