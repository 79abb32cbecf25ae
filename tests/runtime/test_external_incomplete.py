"""GPTQ and AWQ folders that lack a tensor are refused before GPTQModel fills the weight with random numbers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from zeropoint.errors import CheckpointError
from zeropoint.runtime import open_runner

Tiny = Callable[[str], Path]
Tensors = dict[str, torch.Tensor]

LAYER = "model.layers.1."


class LoadedError(Exception):
    """GPTQModel was asked to load the folder."""


@pytest.fixture(autouse=True)
def _gptqmodel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `gptqmodel` whose `load` raises `LoadedError`."""

    def load(*_: Any, **__: Any) -> None:
        raise LoadedError

    package = SimpleNamespace(BACKEND=SimpleNamespace(TORCH="torch"), GPTQModel=SimpleNamespace(load=load))
    monkeypatch.setitem(sys.modules, "gptqmodel", package)


def quantized(source: Path, folder: Path, method: str, change: Callable[[Tensors], Any]) -> Path:
    """Write `folder`: the tensors of `source` by the names that `method` gives them, after `change`."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    tensors: Tensors = {}
    for name, value in load_file(folder / "model.safetensors").items():
        if "_proj.weight" in name or ".w1." in name or ".w2." in name or ".w3." in name:
            stem = name.removesuffix(".weight")
            for leaf in ("qweight", "qzeros", "scales", *(["g_idx"] if method == "gptq" else [])):
                tensors[f"{stem}.{leaf}"] = torch.ones(1, 1, dtype=torch.int32)
        else:
            tensors[name] = value
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def without(*words: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if any(word in key for word in words)]


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize(
    ("base", "change", "said"),
    [
        ("llama_tied", without("layers.0.mlp.up_proj"), r"lacks 1 tensors .* model\.layers\.0\.mlp\.up_proj\.weight"),
        ("llama_tied", without(LAYER), r"lacks 9 tensors .*layers\.1\..* and 5 more"),
        ("llama_tied", without("model.norm"), r"lacks 1 tensors .*model\.norm\.weight"),
        ("llama_tied", without("embed_tokens"), r"lacks 1 tensors .*embed_tokens"),
        ("llama_untied", without("lm_head"), r"lacks 1 tensors .*lm_head"),
        ("llama_untied", without(LAYER + "self_attn.q_proj.scales"), r"lacks 1 tensors .*q_proj\.scales"),
        ("llama_untied", without("down_proj.qzeros"), r"lacks 2 tensors .*down_proj\.qzeros"),
        ("qwen2", without("k_proj.qweight"), r"lacks 2 tensors .*k_proj\.weight"),
        ("mixtral", without(LAYER + "block_sparse_moe.experts.3.w1"), r"lacks 1 tensors .*layers\.1\..*gate_up_proj"),
        ("mixtral", without(LAYER + "block_sparse_moe.experts.3."), r"lacks 2 tensors .*layers\.1\..*experts"),
    ],
)  # fmt: skip
def test_an_incomplete_folder_is_refused(
    method: str, base: str, change: Callable[[Tensors], Any], said: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    folder = quantized(tiny_checkpoint(base), tmp_path / "model", method, change)
    with pytest.raises(CheckpointError, match=said) as raised:
        open_runner(folder, threads=1)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("method", ["gptq", "awq"])
@pytest.mark.parametrize("base", ["llama_tied", "llama_untied", "qwen2", "mixtral"])
def test_a_complete_folder_is_loaded(method: str, base: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = quantized(tiny_checkpoint(base), tmp_path / "model", method, lambda tensors: None)
    with pytest.raises(LoadedError):
        open_runner(folder, threads=1)


def test_more_blocks_in_the_config_are_refused(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = quantized(tiny_checkpoint("llama_tied"), tmp_path / "model", "gptq", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 3}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"lacks 9 tensors .*layers\.2\."):
        open_runner(folder, threads=1)
