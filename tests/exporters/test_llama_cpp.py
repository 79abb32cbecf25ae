"""llama.cpp computes from an exported file what transformers computes from the checkpoint; where it is installed.

`python benchmarks/peers/install.py llama_cpp` puts it into build/peers/llama_cpp. Weights are float32 here, so that
what is compared is names, order of rows, norms, rotations and biases; llama.cpp keeps its cache in FP16, and looks
GELU up in a table of FP16 numbers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH_NAMES
from tokenizers import Tokenizer

from tests.conftest import ROOT
from tests.support import tiny
from zeropoint import artifact, exporters
from zeropoint.gguf.file import GgufFile
from zeropoint.gguf.types.mixes import MIXES, Model
from zeropoint.quantization import quantize_checkpoint

PYTHON = ROOT / "build/peers/llama_cpp/bin/python"
RUNNER = ROOT / "benchmarks/runners/llama_cpp.py"
QUANTIZER = ROOT / "benchmarks/runners/llama_cpp_quantize.py"
KINDS = (
    "llama_tied",
    "llama_untied",
    "qwen2",
    "qwen3",
    "gemma",
    "gpt2",
    "llama3_rope",
    "linear_rope",
    "yarn_rope",
)

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="llama.cpp is not installed in build/peers")


def run(checkpoint: Path, folder: Path, tokens: Any, text: str) -> Any:
    """llama.cpp's answers for an exported checkpoint, its weights as they are."""
    quantize_checkpoint(checkpoint, folder / "artifact", format="fp32")
    exporters.export(artifact.open(folder / "artifact"), "gguf", folder / "model.gguf")
    request = {"windows": tokens, "prompt": tokens[0], "new_tokens": 4, "floats": False}
    np.savez(folder / "request.npz", **request, text=np.frombuffer(text.encode(), np.uint8))
    command = [PYTHON, "-P", RUNNER, folder / "model.gguf", folder / "request.npz", folder / "result.npz"]
    subprocess.run(command, check=True)
    return np.load(folder / "result.npz")


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = tiny.make_checkpoint(kind, tmp_path / "model")
    tiny.write_tokenizer(checkpoint, merges=[("t", "h")])
    tokens = np.random.default_rng(0).integers(0, 256, (2, 48))
    text = "then the other; 12 thin things\n"
    found = run(checkpoint, tmp_path, tokens, text)
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        meant = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(found["logits"], meant, atol=5e-3 * np.abs(meant).max())
    assert found["ids"].tolist() == Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text).ids


@pytest.mark.parametrize("prefix", [True, False])
def test_llama_cpp_reads_sentencepiece_tokens_alike(prefix: bool, tmp_path: Path) -> None:
    import transformers

    words = [*tiny.WORDS, "there", "heathen", "\u2581\u2581\u2581", "ten", "nth", "eat"]
    folder = tmp_path / "model"
    folder.mkdir()
    size = tiny.write_sentencepiece(folder, words, prefix=prefix)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=size, max_position_embeddings=64, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    text = "the heathen   hat then ate  ten teas at the tenth table; \u00e9t\u00e9\n\tthere\u2026 hhtteeaann"
    found = run(folder, tmp_path, np.ones((1, 4), np.int64), text)
    assert found["ids"].tolist() == Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids


@pytest.mark.parametrize("kind", ["llama_tied", "llama_untied", "qwen2", "gemma", "gpt2"])
def test_our_mixes_of_types_are_llama_cpps(kind: str, tmp_path: Path) -> None:
    """Rows of 256 take K-quants, those of 96 what stands in for them; with an importance matrix, as ours have one."""
    checkpoint = tiny.make_checkpoint(kind, tmp_path / "model", hidden_size=256, layers=17)
    tiny.write_tokenizer(checkpoint, merges=[("t", "h")])
    quantize_checkpoint(checkpoint, tmp_path / "artifact", format="fp32")
    exporters.export(artifact.open(tmp_path / "artifact"), "gguf", tmp_path / "f32.gguf")
    np.savez(tmp_path / "moments.npz", **{"model.norm.weight": np.ones(256, np.float32)})
    source = GgufFile(tmp_path / "f32.gguf")
    arch = next(
        arch for arch, name in MODEL_ARCH_NAMES.items() if name == source.metadata["general.architecture"]
    )
    model = Model(arch, 17, "output.weight" not in source.tensors)
    for mix, recipe in MIXES.items():
        out = tmp_path / f"{mix}.gguf"
        command = [PYTHON, "-P", QUANTIZER, source.path, out, mix, tmp_path / "moments.npz"]
        subprocess.run(command, check=True)
        for name, entry in GgufFile(out).tensors.items():
            assert entry.kind == recipe.choose(name, entry.shape, model), (mix, name)
