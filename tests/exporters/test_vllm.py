"""Where vLLM is installed, it computes what the exported artifacts mean.

vLLM may have an environment of its own: ZEROPOINT_VLLM_PYTHON names its Python interpreter.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.support import run_vllm, tiny
from zeropoint import api
from zeropoint.machine.detect import Machine
from zeropoint.runtime import open_runner

PYTHON = os.environ.get("ZEROPOINT_VLLM_PYTHON") or (
    sys.executable if importlib.util.find_spec("vllm") else ""
)
pytestmark = pytest.mark.skipif(
    not PYTHON, reason="vLLM is not installed: pip install vllm, or set ZEROPOINT_VLLM_PYTHON"
)

#: Every kind of weight that the exporter writes for vLLM, and its format.
KINDS = {
    "kept": "bf16",
    "int8": "int8",
    "int8_per_tensor": "int8:tensor:sym:bf16:a8token",
    "int8_float_inputs": "int8:channel:sym:bf16:a16token",
    "int4": "int4",
    "int4_asymmetric": "int4:g32:asym:bf16:a16token",
    "int4_g64": "int4:g64:sym:bf16:a16token",
    "int4_per_channel": "int4:channel:sym:bf16:a16token",
}
#: Parts of the messages with which vLLM says that it has no kernel for a kind of weight on this device.
NO_KERNEL = ("Failed to find a kernel", "has no attribute 'cpu_gemm_wna16'")
Logprobs = NDArray[np.float64]
TOKENS = [256, *(int(token) for token in np.random.default_rng(0).integers(0, 250, 60))]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Logprobs], dict[str, Any]]:
    """Return our and vLLM's log-probabilities of `TOKENS`, each by kind of weight and for the "original".

    If vLLM fails, its error message takes the place of the log-probabilities.
    """
    base = tmp_path_factory.mktemp("vllm")
    # vLLM's attention needs heads of 32 channels. Outliers make the loss by quantizing larger than bfloat16's noise.
    folders = {
        "original": tiny.make_checkpoint(
            "llama_untied", base / "original", dtype=torch.bfloat16, hidden_size=128, outliers=True
        )
    }
    ours = {"original": our_logprobs(folders["original"])}
    for kind, scheme in KINDS.items():
        api.quantize(folders["original"], base / f"{kind} artifact", format=scheme, target="vllm")
        folders[kind] = api.export(base / f"{kind} artifact", "vllm", base / kind).path
        ours[kind] = our_logprobs(base / f"{kind} artifact")
    task = {"folders": list(map(str, folders.values())), "tokens": TOKENS, "dtype": "bfloat16"}
    done = subprocess.run(
        [PYTHON, run_vllm.__file__, json.dumps(task)],
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.strip().splitlines()[-1])
    theirs = {kind: results[str(folder)] for kind, folder in folders.items()}
    return ours, {**theirs, "device": results["device"]}


@pytest.mark.parametrize("kind", KINDS)
def test_vllm_computes_what_the_artifact_means(
    kind: str, both: tuple[dict[str, Logprobs], dict[str, Any]]
) -> None:
    """vLLM and our engine differ by a few times bfloat16's noise and half of what quantizing changed, at most."""
    ours, theirs = both
    found = theirs[kind]
    if isinstance(found, str):
        assert any(part in found for part in NO_KERNEL), found
        pytest.skip(f"vLLM has no kernel for {kind} on this {theirs['device']}: {found[:200]}")
    if kind in ("int8", "int8_per_tensor") and theirs["device"] == "cpu" and not has_vnni():
        pytest.skip("vLLM's int8 products on x86 saturate at 16 bits where the CPU has no VNNI")
    noise = distance(np.array(theirs["original"]), ours["original"])
    lost = distance(ours[kind], ours["original"])
    assert distance(np.array(found), ours[kind]) < 3 * noise + lost / 2


def has_vnni() -> bool:
    return platform.machine() != "x86_64" or "avx512" in Machine.detect().isa_levels


def distance(one: Logprobs, other: Logprobs) -> float:
    return float(np.abs(one - other).mean())


def our_logprobs(path: Path) -> Logprobs:
    logits = open_runner(path, threads=1).logits(np.array(TOKENS)).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return np.array([logprobs[place, token] for place, token in enumerate(TOKENS[1:])])
