"""llama.cpp computes from an exported file what transformers computes from the checkpoint; where it is installed.

`python benchmarks/peers/install.py llama_cpp` puts it into build/peers/llama_cpp. Weights are float32 here, so that
what is compared is names, order of rows, norms, rotations and biases; llama.cpp keeps its cache in FP16, and looks
GELU up in a table of FP16 numbers.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests import tiny
from tests.conftest import ROOT
from zeropoint import artifact, exporters
from zeropoint.quantization import quantize_checkpoint

PYTHON = ROOT / "build/peers/llama_cpp/bin/python"
RUNNER = ROOT / "benchmarks/runners/llama_cpp.py"
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


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same_logits(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = tiny.make_checkpoint(kind, tmp_path / "model")
    tiny.write_tokenizer(checkpoint, merges=[("t", "h")])
    quantize_checkpoint(checkpoint, tmp_path / "artifact", format="fp32")
    exporters.export(artifact.open(tmp_path / "artifact"), "gguf", tmp_path / "model.gguf")
    tokens = np.random.default_rng(0).integers(0, 256, (2, 48))
    text = b"then the other; 12 thin things\n"
    request = {"windows": tokens, "prompt": tokens[0], "new_tokens": 4, "text": np.frombuffer(text, np.uint8)}
    np.savez(tmp_path / "request.npz", **request)
    subprocess.run(
        [PYTHON, "-P", RUNNER, tmp_path / "model.gguf", tmp_path / "request.npz", tmp_path / "result.npz"],
        check=True,
    )
    found = np.load(tmp_path / "result.npz")
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        meant = model(torch.from_numpy(tokens)).logits.numpy()
    np.testing.assert_allclose(found["logits"], meant, atol=5e-3 * np.abs(meant).max())
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(checkpoint / "tokenizer.json")).encode(text.decode()).ids
    assert found["ids"].tolist() == ids
