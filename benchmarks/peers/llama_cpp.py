"""llama.cpp through llama-cpp-python's C API: GGUF files written here from safetensors.

Flash attention is llama.cpp's own choice (on); `-nofa` formats turn it off, which on the CPU slows the prefill and
speeds up decoding behind a long context.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from ctypes import c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

FORMATS = ("F16", "Q8_0", "Q4_0", "Q4_K_M", "Q8_0-nofa", "Q4_0-nofa")
#: Capacity of each context: number of sequences, tokens per sequence. A batch uses the first context that holds it.
CONTEXTS = ((8, 1024), (32, 128))


@dataclass(frozen=True)
class Family:
    """How llama.cpp's converter writes the models of one `model_type`.

    - `norms`: names of a block's norms, in GGUF's words;
    - `paired_rotation`: whether llama.cpp rotates channels (2i, 2i + 1) where Hugging Face rotates (i, i + half);
    - `norm_offset`: what llama.cpp's norm weights hold beyond the checkpoint's (Gemma's norms multiply by 1 + weight);
    - `write_extra`: writes the metadata that only this family has.
    """

    architecture: str
    norms: dict[str, str]
    paired_rotation: bool = False
    norm_offset: float = 0.0
    write_extra: Callable[[Any, dict[str, Any]], None] = lambda writer, config: None

    def gguf_name(self, name: str) -> str:
        """Return GGUF's name of a tensor of the checkpoint."""
        stem = name.removesuffix(".weight")
        if not stem.startswith("model.layers."):
            return OUTER_NAMES[stem] + ".weight"
        index, rest = stem.removeprefix("model.layers.").split(".", 1)
        return f"blk.{index}.{(LAYER_NAMES | self.norms)[rest]}.weight"

    def to_gguf(self, name: str, weight: np.ndarray, config: dict[str, Any]) -> np.ndarray:
        """Return the float32 weight of the checkpoint as llama.cpp expects it."""
        return self._converted(name, weight, config, self.norm_offset, (2, -1))

    def from_gguf(self, name: str, weight: np.ndarray, config: dict[str, Any]) -> np.ndarray:
        """Undo `to_gguf`."""
        return self._converted(name, weight, config, -self.norm_offset, (-1, 2))

    def _converted(
        self, name: str, weight: np.ndarray, config: dict[str, Any], offset: float, pairs: tuple[int, int]
    ) -> np.ndarray:
        """Return a norm's weight plus `offset`, or a matrix whose rotated rows are in the other order."""
        if weight.ndim == 1:
            return weight + np.float32(offset)
        heads = rotated_heads(name, config) if self.paired_rotation else 0
        return swap_rotation_order(weight, heads, pairs) if heads else weight


def rotated_heads(name: str, config: dict[str, Any]) -> int:
    """Return how many heads a projection has whose output is rotated, or 0 for another weight."""
    key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
    return config[key] if key else 0


def swap_rotation_order(weight: np.ndarray, heads: int, pairs: tuple[int, int]) -> np.ndarray:
    """Transpose each head's rows, seen as a matrix of shape `pairs`: (i, i + half) becomes (2i, 2i + 1), or back."""
    rows, columns = weight.shape
    return weight.reshape(heads, *pairs, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gemma3(writer: Any, config: dict[str, Any]) -> None:
    rotations = config["rope_parameters"]
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_rope_freq_base(rotations["full_attention"]["rope_theta"])


def write_llama(writer: Any, config: dict[str, Any]) -> None:
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_rope_dimension_count(config["head_dim"])


OUTER_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FAMILIES = {
    "llama": Family(
        "llama", {"post_attention_layernorm": "ffn_norm"}, paired_rotation=True, write_extra=write_llama
    ),
    "gemma3_text": Family(
        "gemma3",
        {
            "self_attn.q_norm": "attn_q_norm",
            "self_attn.k_norm": "attn_k_norm",
            "post_attention_layernorm": "post_attention_norm",
            "pre_feedforward_layernorm": "ffn_norm",
            "post_feedforward_layernorm": "post_ffw_norm",
        },
        norm_offset=1.0,
        write_extra=write_gemma3,
    ),
}


def read_config(model: Path) -> tuple[dict[str, Any], Family]:
    """Return config.json and the family of a checkpoint folder."""
    config = json.loads((model / "config.json").read_text())
    if config["model_type"] not in FAMILIES:
        raise SystemExit(
            f"this driver writes GGUF files of {', '.join(FAMILIES)}, not {config['model_type']}"
        )
    return config, FAMILIES[config["model_type"]]


def write_f16(model: Path, out: Path) -> None:
    import gguf
    import ml_dtypes  # noqa: F401  (numpy's bfloat16, for safetensors)
    from safetensors import safe_open

    config, family = read_config(model)
    writer = gguf.GGUFWriter(out, family.architecture)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    family.write_extra(writer, config)
    writer.add_tokenizer_model("none")  # it is fed token ids
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    with safe_open(model / "model.safetensors", "np") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (not a dict)
            weight = family.to_gguf(name, tensors.get_tensor(name).astype(np.float32), config)
            writer.add_tensor(
                family.gguf_name(name), weight if weight.ndim == 1 else weight.astype(np.float16)
            )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def convert(model: Path, out: Path, fmt: str) -> None:
    import llama_cpp

    out.mkdir(parents=True)
    f16, file = out / "f16.gguf", out / "model.gguf"
    write_f16(model, f16)
    if fmt == "F16":
        f16.rename(file)
        return
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{fmt.split('-')[0]}")
    params.nthread = 2
    if llama_cpp.llama_model_quantize(str(f16).encode(), str(file).encode(), params):
        raise SystemExit(f"llama.cpp could not quantize {f16} to {fmt}")
    f16.unlink()


def load(path: str, fmt: str, threads: int):
    import llama_cpp as lc

    silence = lc.llama_log_callback(lambda *_: None)
    lc.llama_log_set(silence, c_void_p(0))
    lc.llama_backend_init()
    model = lc.llama_model_load_from_file(f"{path}/model.gguf".encode(), lc.llama_model_default_params())

    @cache
    def context_of(sequences: int, tokens: int):
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = sequences * tokens, 512, 512
        params.n_seq_max, params.kv_unified = sequences, False
        params.n_threads = params.n_threads_batch = threads
        if fmt.endswith("-nofa"):
            params.flash_attn_type = lc.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return lc.llama_init_from_model(model, params)

    def context_for(sequences: int):
        return context_of(*next(room for room in CONTEXTS if sequences <= room[0]))

    vocab_size = lc.llama_vocab_n_tokens(lc.llama_model_get_vocab(model))
    batch = lc.llama_batch_init(512, 0, 1)

    def forward(tokens, past: int):
        """Greedy next tokens `[B, 1]` after tokens `[B, T]` at positions from `past`."""
        count, length = tokens.shape
        context = context_for(count)
        batch.n_tokens = tokens.size
        for i, token in enumerate(tokens.ravel().tolist()):
            sequence, position = divmod(i, length)
            batch.token[i], batch.pos[i] = token, past + position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = position == length - 1
        if lc.llama_decode(context, batch):
            raise SystemExit("llama.cpp could not decode")
        logits = np.ctypeslib.as_array(lc.llama_get_logits(context), (count, vocab_size))
        return logits.argmax(-1)[:, None]

    def run(tokens, new_tokens: int) -> tuple[float, float]:
        context = context_for(len(tokens))
        lc.llama_memory_clear(lc.llama_get_memory(context), True)
        start = time.perf_counter()
        token = forward(tokens, 0)
        middle = time.perf_counter()
        for i in range(new_tokens):
            token = forward(token, tokens.shape[1] + i)
        return middle - start, time.perf_counter() - middle

    run.keep = silence  # type: ignore[attr-defined]  (ctypes does not hold it)
    return run


def read_bytes(path: Path) -> int:
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path / "model.gguf").tensors}
    return sum(sizes.values()) - (sizes["token_embd.weight"] if "output.weight" in sizes else 0)
