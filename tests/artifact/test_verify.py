"""`Artifact.verify` compares the shapes of all tensors, float and quantized, with those that config.json implies."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zeropoint import artifact
from zeropoint.errors import ArtifactError
from zeropoint.quantization import quantize_checkpoint

Tiny = Callable[[str], Path]
Make = Callable[[str, str], Path]
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def make(tiny_checkpoint: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Make:
    folder = tmp_path_factory.mktemp("verify")

    def get(kind: str, format: str) -> Path:
        out = folder / f"{kind}-{format}"
        if not out.exists():
            quantize_checkpoint(tiny_checkpoint(kind), out, format=format)
        return out

    return get


@pytest.mark.parametrize("format", ["int8", "int4", "fp16"])
@pytest.mark.parametrize(
    "kind", ["llama_tied", "llama_untied", "gpt2", "gemma2", "phi", "gpt_neox", "mixtral"]
)
def test_a_sound_artifact_passes(kind: str, format: str, make: Make) -> None:
    artifact.open(make(kind, format)).verify()


@pytest.mark.parametrize(
    ("kind", "format", "name", "shape", "expected"),
    [
        ("llama_tied", "int8", "model.norm.weight", (8, 8), "(64,)"),
        ("llama_tied", "int4", "model.layers.1.input_layernorm.weight", (1, 64), "(64,)"),
        ("llama_untied", "fp16", "model.layers.0.mlp.up_proj.weight", (64, 96), "(96, 64)"),
        ("llama_untied", "fp16", "model.embed_tokens.weight", (64, 260), "(260, 64)"),
        ("qwen2", "int8", "model.layers.0.self_attn.k_proj.bias", (32, 1), "(32,)"),
        ("gpt2", "int8", "transformer.wpe.weight", (64, 128), "(128, 64)"),
        ("gpt2", "fp16", "transformer.h.0.mlp.c_fc.weight", (256, 64), "(64, 256)"),
        ("gpt_neox", "int4", "gpt_neox.layers.0.attention.query_key_value.bias", (3, 64), "(192,)"),
    ],
)
def test_a_tensor_of_another_shape_is_refused(
    kind: str, format: str, name: str, shape: tuple[int, ...], expected: str, make: Make, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make(kind, format), tmp_path / "changed"))
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].reshape(shape)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    opened = artifact.open(folder)
    said = f"{name} has the shape {shape} but its config.json implies {expected}"
    with pytest.raises(ArtifactError, match=re.escape(said)):
        opened.verify()


@pytest.mark.parametrize(
    ("kind", "field", "value", "said"),
    [
        ("llama_tied", "vocab_size", 300, r"embed_tokens.* \(260, 64\) .* \(300, 64\)"),
        ("llama_tied", "intermediate_size", 128, r"mlp\..* \(96, 64\) .* \(128, 64\)"),
        ("llama_tied", "num_hidden_layers", 3, r"lacks model\.layers\.2\."),
        ("qwen2", "num_key_value_heads", 4, r"k_proj.* \(32, 64\) .* \(64, 64\)"),
        ("gpt2", "n_positions", 64, r"wpe.* \(128, 64\) .* \(64, 64\)"),
    ],
)
def test_another_models_config_is_refused(
    kind: str, field: str, value: int, said: str, make: Make, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make(kind, "int8"), tmp_path / "changed"))
    config = json.loads((folder / "config.json").read_text()) | {field: value}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=said):
        artifact.open(folder).verify()
