"""The native engine on the real model: logits, greedy text, memory."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.runtime.native.test_engine import divergence, relative_error
from zeropoint import quantize
from zeropoint.errors import UsageError
from zeropoint.files import identity
from zeropoint.runtime import open_runner
from zeropoint.runtime.native.runner import NativeRunner
from zeropoint.runtime.native.session import Session

pytestmark = pytest.mark.reference_model

TEXT = (
    "The old lighthouse stood at the end of the pier, and every evening its keeper climbed the stairs to light the "
    "lamp. Ships far out at sea could see it through the fog. One winter night the lamp went out, and"
)
#: What running may take beside packed weights and the key-value cache: Python, numpy, the tokenizer, activations.
OVERHEAD_BYTES = 60e6


def first_blocks(model: Path, count: int, folder: Path) -> Path:
    """Write the checkpoint that ends after the first `count` transformer blocks of `model` to `folder`."""
    shutil.copytree(model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
    weights = {
        name: weight
        for name, weight in load_file(model / "model.safetensors").items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < count
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_fp16_says_what_transformers_says(
    reference_model: Path, reference_artifact: Callable[[str], Path]
) -> None:
    native = open_runner(reference_artifact("fp16"), engine="native")
    model = AutoModelForCausalLM.from_pretrained(reference_model, dtype=torch.float32).eval()
    tokens = native.encode(TEXT)
    ids = torch.tensor([tokens])
    with torch.inference_mode():
        want = model(input_ids=ids).logits[0].numpy()
        text = model.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
    assert relative_error(native.logits(np.array(tokens)), want) < 2e-3
    assert native.generate(tokens, max_new_tokens=64) == text[0, len(tokens) :].tolist()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_quantized_is_the_universal_runtime(format: str, reference_artifact: Callable[[str], Path]) -> None:
    path = reference_artifact(format)
    native = open_runner(path, engine="native")
    tokens = np.array(native.encode(TEXT))
    want = open_runner(path, engine="universal").logits(tokens)
    assert divergence(want, native.logits(tokens)).mean() < 1e-3


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_eight_prompts_of_mixed_lengths_decode_as_alone(
    format: str, reference_artifact: Callable[[str], Path]
) -> None:
    runner = NativeRunner.open(reference_artifact(format), threads=2)
    tokens = runner.encode(TEXT)
    prompts = [tokens[:length] for length in (1, 2, 5, 9, 14, 20, 31, 40)]
    together = runner.generate_batch(prompts, max_new_tokens=16)
    assert together == [runner.generate(prompt, max_new_tokens=16) for prompt in prompts]


@pytest.mark.parametrize("format", ["fp16", "int8", "int4"])
def test_a_prompt_in_chunks_is_one_token_at_a_time(
    format: str, reference_artifact: Callable[[str], Path]
) -> None:
    runner = NativeRunner.open(reference_artifact(format), threads=2)
    tokens = runner.encode(TEXT)
    session = Session(runner.decoder, threads=2)
    one_by_one = np.stack([session.feed([token]).copy() for token in tokens])
    np.testing.assert_array_equal(one_by_one, runner.logits(np.array(tokens)))


def test_the_whole_context_of_8192_tokens(reference_model: Path, tmp_path: Path) -> None:
    """On four blocks of thirty: they read the same positions, pages of the cache and keys as the others would."""
    layers, kv_heads, head_dim = 4, 3, 64
    quantize(first_blocks(reference_model, layers, tmp_path / "model"), tmp_path / "int4", format="int4")
    runner = NativeRunner.open(tmp_path / "int4", threads=2)
    tokens = (runner.encode(TEXT) * 200)[:8192]
    session = Session(runner.decoder, threads=2)
    session.feed(tokens[:-1])
    assert np.isfinite(session.feed(tokens[-1:])).all()
    payload = 2 * 2 * layers * kv_heads * head_dim * 8192  # keys and values of 2 bytes
    assert payload <= session.cache_bytes <= payload * 1.01
    with pytest.raises(UsageError, match="8193 tokens, and the model's context ends at 8192"):
        session.feed([1])


MEASURE = """
import json, re, sys
from pathlib import Path
from zeropoint.machine.heap import trim
from zeropoint.runtime import open_runner
runner = open_runner(sys.argv[1], threads=2, engine="native")
runner.generate(runner.encode("Once upon a time " * 150), max_new_tokens=200)
trim()
resident = int(re.search(r"VmRSS:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
print(json.dumps([resident, runner.weights_bytes, runner._session.cache_bytes]))
"""


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_memory_is_weights_and_cache_and_little_else(
    format: str, reference_artifact: Callable[[str], Path]
) -> None:
    path = reference_artifact(format)
    time.sleep(
        identity.SETTLED_NS / 1e9 + 0.1
    )  # weights that were just written are digested anew by each who loads them
    open_runner(path, engine="native")  # packs
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    resident, weights, cache = json.loads(done.stdout)
    assert resident <= weights + cache + OVERHEAD_BYTES
