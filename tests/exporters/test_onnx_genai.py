"""onnxruntime-genai runs exported folders as plain onnxruntime does; where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from zeropoint import artifact, exporters
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime import open_runner

genai = pytest.importorskip(
    "onnxruntime_genai", reason="onnxruntime-genai is not installed (pip install onnxruntime-genai)"
)

KINDS = ("llama_tied", "qwen2", "qwen3", "gemma", "gemma2_short", "gemma3_text", "gpt2", "mistral_short", "phi3",
         "olmo", "olmo2", "smollm3", "granite", "opt", "cohere")  # fmt: skip


def run(folder: Path, prompt: Sequence[int], new_tokens: int) -> tuple[Any, list[int]]:
    """The logits after the prompt, and the greedy tokens after it."""
    model = genai.Model(str(folder))
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + new_tokens, do_sample=False)
    generator = genai.Generator(model, params)
    generator.append_tokens(np.array(prompt, np.int32))
    logits = np.array(generator.get_logits()).reshape(-1)
    tokens: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return logits, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_it_computes_what_onnxruntime_computes(kind: str, tmp_path: Path) -> None:
    quantize_checkpoint(tiny.make_checkpoint(kind, tmp_path / "model"), tmp_path / "artifact", format="int8")
    exporters.export(artifact.open(tmp_path / "artifact"), "onnx", tmp_path / "onnx")
    prompt = np.random.default_rng(0).integers(0, 256, 20).tolist()
    logits, tokens = run(tmp_path / "onnx", prompt, 24)
    runner = open_runner(tmp_path / "onnx", threads=1)
    meant = runner.logits(np.array(prompt))[-1]
    assert np.abs(logits - meant).max() < 1e-4 * np.abs(meant).max()
    assert tokens
    assert tokens == runner.generate(prompt, max_new_tokens=24)[: len(tokens)]
