"""Zeropoint itself: artifacts that `zeropoint quantize` writes, run by the native engine or the universal one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

FORMATS = ("fp16", "int8", "int4", "int8-universal")
SERVED = ("fp16", "int8", "int4")


def convert(model: Path, out: Path, fmt: str) -> None:
    preset = fmt.split("-")[0]
    command = [sys.executable, "-m", "zeropoint", "quantize", model, "-o", out, "--format", preset]
    subprocess.run(command, check=True)


def load(path: str, fmt: str, threads: int):
    from zeropoint.runtime import open_runner

    engine = "universal" if fmt.endswith("-universal") else "native"
    return open_runner(path, threads=threads, engine=engine).prefill_decode


def listen(path: str, fmt: str, threads: int, port: int) -> None:
    command = [
        sys.executable,
        "-m",
        "zeropoint",
        "serve",
        path,
        "--threads",
        str(threads),
        "--port",
        str(port),
    ]
    os.execv(sys.executable, command)


def read_bytes(path: Path) -> int:
    tied = json.loads((path / "config.json").read_text())["tie_word_embeddings"]
    total = 0
    for file in path.glob("*.safetensors"):
        with file.open("rb") as stream:
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if tied or "embed_tokens" not in name:
                total += entry["data_offsets"][1] - entry["data_offsets"][0]
    return total
