#!/usr/bin/env python3
"""Make a Llama checkpoint with 1.1B random parameters, to measure speed and memory only.

The checkpoint is 2.2 GB of BF16 safetensors: hidden size 2048, 22 layers, MLP 5632, 32 heads, 4 key-value heads,
vocabulary 32000, untied. Weights are normal with standard deviation 0.02; the same seed gives the same bytes. The
tokenizer has the first 32000 tokens of another folder's byte-level BPE: merges only build later tokens from earlier
ones, so a prefix of the vocabulary is a complete tokenizer.

    python scripts/make_random.py --tokenizer build/reference-model --out build/random-1.1b
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 22,
    "intermediate_size": 5632,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "dtype": "bfloat16",
}


def shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the name and shape of every parameter."""
    hidden, mlp, vocab = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["vocab_size"]
    key_value = CONFIG["num_key_value_heads"] * CONFIG["head_dim"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(CONFIG["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        yield f"{layer}.input_layernorm.weight", (hidden,)
        yield f"{layer}.self_attn.q_proj.weight", (hidden, hidden)
        yield f"{layer}.self_attn.k_proj.weight", (key_value, hidden)
        yield f"{layer}.self_attn.v_proj.weight", (key_value, hidden)
        yield f"{layer}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield f"{layer}.mlp.gate_proj.weight", (mlp, hidden)
        yield f"{layer}.mlp.up_proj.weight", (mlp, hidden)
        yield f"{layer}.mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (vocab, hidden)


def shorten_tokenizer(source: Path, out: Path) -> None:
    """Copy a byte-level BPE tokenizer with only its first `vocab_size` tokens."""
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    model = tokenizer["model"]
    vocab = {token: i for token, i in model["vocab"].items() if i < CONFIG["vocab_size"]}
    pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    model["vocab"] = vocab
    model["merges"] = [p for p in pairs if p[0] + p[1] in vocab]
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False))
    shutil.copy(source / "tokenizer_config.json", out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="checkpoint folder to write")
    parser.add_argument(
        "--tokenizer", type=Path, required=True, help="model folder with the tokenizer to shorten"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights (default: 0)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(options.seed)
    tensors = {
        name: (
            torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.02
        ).bfloat16()
        for name, shape in shapes()
    }
    save_file(tensors, options.out / "model.safetensors", metadata={"format": "pt"})
    (options.out / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")
    shorten_tokenizer(options.tokenizer, options.out)


if __name__ == "__main__":
    main()
