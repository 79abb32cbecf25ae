"""OpenVINO: the stateful model that optimum-intel exports, driven directly.

`int8-f32` and `int4-f32` run with float32 activations outside the matrix products and dynamically quantized ones
inside (groups of 128); `-auto` leaves both to OpenVINO, which computes in bfloat16 where the CPU can.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FORMATS = ("int8-f32", "int4-f32", "int8-auto", "int4-auto")


def convert(model: Path, out: Path, fmt: str) -> None:
    config = json.loads((model / "config.json").read_text())
    # groups may not straddle the end of a row, so the real model's 576 channels take 64
    group = "128" if config["hidden_size"] % 128 == 0 else "64"
    int4 = ["--ratio", "1.0", "--sym", "--group-size", group] if fmt.startswith("int4") else []
    subprocess.run(
        [
            *(Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", model),
            *("--task", "text-generation-with-past", "--weight-format", fmt[:4], *int4, out),
        ],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def load(path: str, fmt: str, threads: int):
    import openvino as ov

    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if fmt.endswith("-f32"):
        options |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
    compiled = core.compile_model(f"{path}/openvino_model.xml", "CPU", options)
    request = compiled.create_infer_request()

    def step(tokens, past: int):
        batch, length = tokens.shape
        request.infer(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((batch, past + length), np.int64),
                "position_ids": np.broadcast_to(np.arange(past, past + length), tokens.shape),
                "beam_idx": np.arange(batch, dtype=np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )
        return request.get_output_tensor(0).data[:, -1].argmax(-1)[:, None]

    def run(tokens, new_tokens: int) -> tuple[float, float]:
        request.reset_state()
        start = time.perf_counter()
        token = step(tokens, 0)
        middle = time.perf_counter()
        for i in range(new_tokens):
            token = step(token, tokens.shape[1] + i)
        return middle - start, time.perf_counter() - middle

    return run


def read_bytes(path: Path) -> int:
    config = json.loads((path / "config.json").read_text())
    table = 0 if config["tie_word_embeddings"] else config["vocab_size"] * config["hidden_size"]
    # the exporter keeps the embedding in int8 in every format
    return (path / "openvino_model.bin").stat().st_size - table
