"""vLLM on the CPU: its own server, with the original model or with a model that `zeropoint export --to vllm` wrote.

`bf16` is the original checkpoint, `w8a8` int8 weights and int8 inputs with a scale per token, `w4a16` int4 weights in
groups of 32 and float inputs. Prefix caching and chunked prefill are on, as vLLM's defaults are.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

FORMATS = ()  # none for engine.py
SERVED = ("bf16", "w8a8", "w4a16")
PRESETS = {"w8a8": "int8:a8token", "w4a16": "int4:g32:a32"}


def convert(model: Path, out: Path, fmt: str) -> None:
    if fmt == "bf16":
        shutil.copytree(model, out)
        return
    zeropoint = [os.environ["ZEROPOINT_PYTHON"], "-m", "zeropoint"]
    artifact = out.with_name(out.name + "-artifact")
    shutil.rmtree(artifact, ignore_errors=True)
    quantize = [*zeropoint, "quantize", model, "-o", artifact, "--format", PRESETS[fmt], "--for", "vllm"]
    subprocess.run(quantize, check=True)
    subprocess.run([*zeropoint, "export", artifact, "--to", "vllm", "-o", out, "--no-run"], check=True)
    shutil.rmtree(artifact)


def listen(path: str, fmt: str, threads: int, port: int) -> None:
    os.environ |= {
        "VLLM_CPU_KVCACHE_SPACE": "2",  # GB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(threads),
        "VLLM_NO_USAGE_STATS": "1",
    }
    options = ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", "8192", "--dtype", "bfloat16"]
    options += ["--disable-log-stats"]
    command = [str(Path(sys.executable).with_name("vllm")), "serve", path, *options]
    os.execv(command[0], command)
