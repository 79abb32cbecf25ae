"""Run a benchmark, peers included, at a lower instruction set level than the machine's own.

    python benchmarks/levels.py avx2 python benchmarks/engine.py build/reference-model

The level of each is set by environment variables, or by another build:

- Zeropoint: `ZEROPOINT_ISA`
- torch: `ATEN_CPU_CAPABILITY` for its own kernels, `ONEDNN_MAX_CPU_ISA` for oneDNN, `MKL_ENABLE_INSTRUCTIONS` for MKL
- OpenVINO: `OV_CPU_MAX_ISA` for its own kernels, always equal to `ONEDNN_MAX_CPU_ISA`. Versions before 2026.4 ignore
  `OV_CPU_MAX_ISA`; their own kernels and oneDNN then run at two levels, and int8 and int4 models do not load.
- llama.cpp: another build, `build/peers/llama_cpp-LEVEL`: `python benchmarks/peers/install.py --level LEVEL`

At the machine's own level no variable is set, and llama.cpp's build for this machine runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PEERS = Path(__file__).parents[1] / "build" / "peers"
#: Environment variable that tells the benchmark and its child processes the level; unset at the machine's own level.
FORCED = "ZEROPOINT_BENCHMARK_LEVEL"

#: The environment variables that hold the peers to a level.
ENVIRONMENT = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OV_CPU_MAX_ISA": "AVX2",
    },
    "avxvnni": {
        "ATEN_CPU_CAPABILITY": "avx2",  # torch has no kernels of its own between the two
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2_VNNI",
        "OV_CPU_MAX_ISA": "AVX2_VNNI",
    },
    "avx512": {
        "ATEN_CPU_CAPABILITY": "avx512",
        "MKL_ENABLE_INSTRUCTIONS": "AVX512",
        "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16",  # a processor with AMX has BF16 products too
        "OV_CPU_MAX_ISA": "AVX512_CORE_BF16",
    },
    "amx": {},
}

#: The options of llama.cpp's build for a level.
_AVX2 = "-DGGML_NATIVE=OFF -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON"
_AVX512 = f"{_AVX2} -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON -DGGML_AVX512_BF16=ON"
LLAMA_CPP = {"avx2": _AVX2, "avxvnni": f"{_AVX2} -DGGML_AVX_VNNI=ON", "avx512": _AVX512}


def forced() -> str:
    """Return the instruction set level that `levels.py` forced on this process; "" if it forced none."""
    return os.environ.get(FORCED, "")


def peer_folder(peer: str, level: str | None = None) -> Path:
    """Return the folder of a peer's Python environment at `level` (None: the forced level; "": the machine's own)."""
    level = forced() if level is None else level
    return PEERS / (f"{peer}-{level}" if level and peer == "llama_cpp" else peer)


def environment(level: str) -> dict[str, str]:
    """Return the environment variables that force a level; none for the machine's own level.

    Raises `SystemExit` for a level that is unknown, or that this machine cannot run.
    """
    from zeropoint.kernels import isa_levels

    levels = [name for name in isa_levels() if name in ENVIRONMENT]
    if level not in levels:
        raise SystemExit(f"{level} is no level of this machine: give one of {', '.join(levels)}")
    if level == levels[-1]:
        return {}
    return {"ZEROPOINT_ISA": level, FORCED: level, **ENVIRONMENT[level]}


def notes() -> list[str]:
    """Return the line for a results page that says how the level was forced; no line if none was."""
    if not (level := forced()):
        return []
    names = ", ".join(f"`{name}={value}`" for name, value in ENVIRONMENT[level].items())
    return [f"- held to {level}, below this machine's own level: {names}; llama.cpp is built for it"]


def main() -> None:
    if len(sys.argv) < 3:
        raise SystemExit("usage: python benchmarks/levels.py LEVEL COMMAND...")
    level, *command = sys.argv[1:]
    os.execvpe(command[0], command, {**os.environ, **environment(level)})


if __name__ == "__main__":
    main()
