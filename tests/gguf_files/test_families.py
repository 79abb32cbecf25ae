"""Every family that GGUF names: written, read again bit for bit, run natively with transformers' logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import zeropoint
from tests.support import tiny
from zeropoint import artifact, exporters, importers
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UnsupportedError
from zeropoint.gguf.architecture.description import describe
from zeropoint.gguf.architecture.families import FAMILIES, MODEL_TYPES
from zeropoint.gguf.model import GgufModel
from zeropoint.models.families import families
from zeropoint.quantization import quantize_checkpoint

#: Tiny model -> config fields that llama.cpp's graph asks for, where the tiny model has others.
KINDS: dict[str, dict[str, Any]] = {
    "llama_tied": {},
    "llama_untied": {},
    "llama3_rope": {},
    "linear_rope": {},
    "yarn_rope": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {},
    "gemma": {},
    "gemma2": {},
    "gemma2_short": {"query_pre_attn_scalar": 16},
    "gemma3_text": {"query_pre_attn_scalar": 16, "final_logit_softcapping": 20.0},
    "phi": {},
    "phi3": {},
    "phi3_partial": {},
    "olmo": {},
    "olmo2": {},
    "olmo3": {},
    "starcoder2": {},
    "stablelm": {},
    "stablelm_parallel": {},
    "granite": {},
    "smollm3": {},
    "gpt_neox": {},
    "gpt_neox_serial": {"attention_bias": True},
    "cohere": {},
    "gpt2": {},
}

IDS = np.random.default_rng(0).integers(0, 256, 48)

Change = Callable[[torch.nn.Module], None]


def make(kind: str, folder: Path, **fields: Any) -> Path:
    """A tiny checkpoint whose norms and biases are not what a new model's are."""
    class_name, given = {**tiny.CONFIGS, **tiny.NATIVE_CONFIGS}[kind]
    config = getattr(transformers, class_name)(**{**given, **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm" in name or "ln_" in name or name.endswith("bias"):
                value.add_(torch.randn_like(value) * 0.2)
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder, merges=[("t", "h")])
    return folder


def export(kind: str, tmp_path: Path, scheme: str = "fp16", **fields: Any) -> tuple[Path, Path]:
    """A tiny checkpoint, and the file of its artifact."""
    model = make(kind, tmp_path / "model", **fields)
    quantize_checkpoint(model, tmp_path / "artifact", format=scheme)
    exporters.export(artifact.open(tmp_path / "artifact"), "gguf", tmp_path / "m.gguf")
    return model, tmp_path / "m.gguf"


def reference(model: Path) -> Any:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        return loaded(torch.tensor(IDS)[None]).logits[0].numpy()


def test_every_family_of_the_engine_is_named_or_unknown_to_llama_cpp() -> None:
    assert set(families()) - set(FAMILIES) == {"opt"}
    assert {MODEL_TYPES[name] for name in ("llama", "olmo2", "gemma3", "phi2", "gptneox", "command-r")} == {
        "llama",
        "olmo2",
        "gemma3_text",
        "phi",
        "gpt_neox",
        "cohere",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_read_as_the_model_it_was_written_of(kind: str, tmp_path: Path) -> None:
    model, file = export(kind, tmp_path, "fp32", **KINDS[kind])
    importers.import_model(file, tmp_path / "back")
    one, other = artifact.open(tmp_path / "artifact"), artifact.open(tmp_path / "back")
    assert set(one.names()) <= set(other.names())  # a head that llama.cpp wants twice comes back untied
    rounding = 1e-7 if "gemma" in kind else 0  # llama.cpp stores their norms with the 1 added, in float32
    for name in one.names():
        np.testing.assert_allclose(one.read(name), other.read(name), rtol=0, atol=rounding, err_msg=name)
    meant = reference(model)
    found = zeropoint.load(tmp_path / "back", threads=1, engine="native").logits(IDS)
    np.testing.assert_allclose(found, meant, atol=2e-3 * np.abs(meant).max())
    checkpoint = open_checkpoint(file)
    for name in one.names():
        np.testing.assert_array_equal(checkpoint.read(name).numpy(), other.read(name), err_msg=name)


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        ("mistral", {}, "32 positions in 2 layers"),
        ("qwen2_windows", {}, "5 positions in 1 layers"),
        ("gemma3_text", {}, "attention_scale"),
        ("gemma2", {"attn_logit_softcapping": None}, "attention_softcap"),
        ("gpt_neox_serial", {}, "has a bias for"),
        ("starcoder2", {"use_bias": False}, "has a bias for"),
        ("cohere", {"tie_word_embeddings": False}, "no output head"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 1]}, "turns its heads"),
        ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True}, "qk_layernorm"),
        ("qwen2", {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                       "high_freq_factor": 4.0, "original_max_position_embeddings": 32}},
         "cannot scale"),
        ("llama_tied", {"hidden_act": "gelu"}, "activation"),
        ("olmo2", {"head_dim": 32}, "heads of 16"),
        ("opt", {}, "no GGUF architecture"),
    ],
)  # fmt: skip
def test_what_llama_cpp_computes_otherwise_is_named(kind: str, fields: dict[str, Any], why: str) -> None:
    class_name, given = {**tiny.CONFIGS, **tiny.NATIVE_CONFIGS}[kind]
    config = getattr(transformers, class_name)(**{**given, **fields}).to_diff_dict()
    description, problems = describe(config)
    assert description is None
    assert any(why in problem for problem in problems), problems


def test_a_difference_that_every_file_has_is_a_note(tmp_path: Path) -> None:
    for kind, said in (("phi3", "whole context"), ("gpt_neox", "GELU")):
        class_name, given = {**tiny.CONFIGS, **tiny.NATIVE_CONFIGS}[kind]
        description, _ = describe(getattr(transformers, class_name)(**given).to_diff_dict())
        assert description is not None
        assert any(said in note for note in description.notes)


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "cohere"])
def test_a_head_of_its_own_that_llama_cpp_would_not_read_is_refused(kind: str, tmp_path: Path) -> None:
    model = make(kind, tmp_path / "model", tie_word_embeddings=False)
    quantize_checkpoint(model, tmp_path / "artifact", format="fp16")
    with pytest.raises(UnsupportedError, match="no output head"):
        exporters.export(artifact.open(tmp_path / "artifact"), "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_head_of_its_own_is_kept(tmp_path: Path) -> None:
    model, file = export("gemma3_text", tmp_path, "fp32", **KINDS["gemma3_text"], tie_word_embeddings=False)
    meant = reference(model)
    assert GgufModel(file).config["tie_word_embeddings"] is False
    quantize_checkpoint(file, tmp_path / "again", format="fp32")
    found = zeropoint.load(tmp_path / "again", threads=1, engine="native").logits(IDS)
    np.testing.assert_allclose(found, meant, atol=2e-3 * np.abs(meant).max())


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zeropoint.gguf.file import GgufFile
    from zeropoint.machine.detect import Machine
    from zeropoint.planning.survey import survey

    _, file = export("llama_tied", tmp_path, "int8")
    monkeypatch.setattr(GgufFile, "raw", lambda *_: pytest.fail("a weight was read"))
    checkpoint = open_checkpoint(file)
    opened = GgufModel(file)
    assert checkpoint.source_nbytes() == opened.nbytes
    assert 0.5 * file.stat().st_size < opened.nbytes < file.stat().st_size
    assert survey(checkpoint, ("int8",), machine=Machine.detect()).source_bytes == opened.nbytes
