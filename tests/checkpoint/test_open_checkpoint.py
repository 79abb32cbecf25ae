"""Checkpoints read as transformers reads them, and every bad one is refused in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.support.tiny import ARCHITECTURES, make_checkpoint
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_what_transformers_loads(name: str, tiny_checkpoint: Tiny) -> None:
    folder = tiny_checkpoint(name)
    checkpoint = open_checkpoint(folder)
    state = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert {info.name for info in checkpoint.parameters()} == set(state)
    for info in checkpoint.parameters():
        assert torch.equal(checkpoint.read(info.name), state[info.name]), info.name
    assert len(checkpoint.blocks()) == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes_and_shards(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = make_checkpoint("llama_untied", tmp_path / "m", dtype=dtype, max_shard_size="100KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    checkpoint = open_checkpoint(folder)
    state = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict()
    for info in checkpoint.parameters():
        assert info.dtype == dtype
        assert torch.equal(checkpoint.read(info.name), state[info.name])
    assert checkpoint.source_nbytes() == sum(value.numel() * dtype.itemsize for value in state.values())


def test_names_without_the_base_prefix(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """GPT-2's files on the hub say `h.0...`, the model `transformer.h.0...`."""
    folder = copied(tiny_checkpoint("gpt2"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({k.removeprefix("transformer."): v for k, v in tensors.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    checkpoint = open_checkpoint(folder)
    for name, value in tensors.items():
        assert torch.equal(checkpoint.read(name), value)


def test_a_tie_that_the_tensors_contradict_is_given_up(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint("llama_tied"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    same = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(same, folder / "model.safetensors", metadata={"format": "pt"})
    assert [i.name for i in open_checkpoint(folder).parameters() if i.tied_to] == ["lm_head.weight"]
    other = {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
    save_file(other, folder / "model.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(folder)
    assert not [info for info in checkpoint.parameters() if info.tied_to]
    assert torch.equal(checkpoint.read("lm_head.weight"), other["lm_head.weight"])


def test_a_tied_pair_stored_under_the_heads_name(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint("llama_tied"), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    embedding = tensors.pop("model.embed_tokens.weight")
    save_file(
        {**tensors, "lm_head.weight": embedding}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    checkpoint = open_checkpoint(folder)
    assert torch.equal(checkpoint.read("model.embed_tokens.weight"), embedding)
    assert torch.equal(checkpoint.read("lm_head.weight"), embedding)


def test_digest_follows_the_weights(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint("llama_tied"), tmp_path)
    first = open_checkpoint(folder).source_digest()
    assert first == open_checkpoint(tiny_checkpoint("llama_tied")).source_digest()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert open_checkpoint(folder).source_digest() != first


def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty folder": (lambda f: [p.unlink() for p in f.iterdir()], "is empty"),
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json"),
    "config without weights": (lambda f: (f / "model.safetensors").unlink(), "no weights"),
    "pickle only": (pickled, "convert them"),
    "truncated": (lambda f: truncate(f / "model.safetensors"), "truncated"),
    "garbage": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 300), "truncated or not"),
    "empty file": (lambda f: (f / "model.safetensors").write_bytes(b""), "truncated or not"),
    "unknown type": (lambda f: edit(f, model_type="zeta9"), "zeta9"),
    "no type": (lambda f: edit(f, model_type=None), "model_type"),
    "bad json": (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
    "json list": (lambda f: (f / "config.json").write_text("[]"), "JSON object"),
    "other shape": (lambda f: edit(f, intermediate_size=128), "shape"),
    "missing tensor": (drop_tensor, "lacks 1 tensors"),
    "more layers": (lambda f: edit(f, num_hidden_layers=3), "lacks 9 tensors"),
    "impossible": (lambda f: edit(f, num_attention_heads="x"), "config"),
    "already quantized": (
        lambda f: edit(f, quantization_config={"quant_method": "gptq"}),
        "already quantized",
    ),
    "remote code": (lambda f: edit(f, model_type="own", auto_map={"AutoConfig": "x.Y"}), "not run"),
    "encoder": (lambda f: edit(f, model_type="bert", architectures=["BertForMaskedLM"]), "encoder"),
    "vision": (lambda f: edit(f, model_type="vit"), "vit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_checkpoints(case: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = copied(tiny_checkpoint("llama_tied"), tmp_path)
    damage, words = BAD[case]
    damage(folder)
    with pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(folder)
    assert "\n" not in str(caught.value)


def test_missing_and_escaping_shards(tmp_path: Path) -> None:
    folder = make_checkpoint("llama_tied", tmp_path / "m", max_shard_size="100KB")
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"lacks the shard {shard.name}"):
        open_checkpoint(folder)
    index.write_text(index.read_text().replace(shard.name, "../elsewhere"))
    with pytest.raises(CheckpointError, match="not a file of this folder"):
        open_checkpoint(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="weight_map"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["/no/such/folder", "./missing", "a/b/c/d", "~/nothing-here"])
def test_missing_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(name)


def test_hub_name_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="could not be fetched from the Hugging Face hub") as caught:
        open_checkpoint("someone/no-such-model")
    assert "\n" not in str(caught.value)


def test_gguf(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    state = load_file(tiny_checkpoint("llama_untied") / "model.safetensors")
    path = write_gguf(tmp_path / "model.gguf", state)
    for source in (path, tmp_path):
        checkpoint = open_checkpoint(source)
        for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"):
            assert torch.equal(checkpoint.read(name), state[name]), name
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="ends inside its header"):
        open_checkpoint(tmp_path / "other.gguf")
    (tmp_path / "text.gguf").write_bytes(b"hello")
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        open_checkpoint(tmp_path / "text.gguf")


def write_gguf(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A llama GGUF in F32. Queries and keys are left unpermuted: the test does not read them."""
    import gguf

    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    }  # fmt: skip
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(2)
    writer.add_feed_forward_length(96)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(260)
    for name, value in state.items():
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name.replace("model.layers.", "blk."), value.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_codes_are_not_taken_for_weights(tmp_path: Path) -> None:
    folder = make_checkpoint("llama_untied", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = torch.ones(96, 64, dtype=torch.int8)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        CheckpointError,
        match=r"stores model\.layers\.0\.mlp\.up_proj\.weight as I8, and the model has floats there",
    ):
        open_checkpoint(folder)
