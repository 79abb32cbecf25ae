"""Run a benchmark at a lower instruction set level than the machine's own, with all peers held to it.

    python benchmarks/levels.py avx2 python benchmarks/engine.py build/reference-model

- ours: `ZEROPOINT_ISA`
- torch: `ATEN_CPU_CAPABILITY` for its own kernels, `ONEDNN_MAX_CPU_ISA` for oneDNN's, `MKL_ENABLE_INSTRUCTIONS`
- OpenVINO: `OV_CPU_MAX_ISA` for its own kernels, which must say the same as `ONEDNN_MAX_CPU_ISA`. Versions before
  2026.4 read oneDNN's alone, the two then disagree, and int8 and int4 models do not load.
- llama.cpp: another build, `build/peers/llama_cpp-LEVEL`: `python benchmarks/peers/install.py --level LEVEL`

At the machine's own level nothing is forced, and llama.cpp's build for this machine runs.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PEERS = Path(__file__).parents[1] / "build" / "peers"
#: The level that was forced, for the processes below; unset at the machine's own level.
FORCED = "ZEROPOINT_BENCHMARK_LEVEL"

#: The environment of a level, without our own variables.
ENVIRONMENT = {
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OV_CPU_MAX_ISA": "AVX2",
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
LLAMA_CPP = {"avx2": _AVX2, "avx512": _AVX512}


def forced() -> str:
    """Return the level that this process was started at by `levels.py`; "" at the machine's own level."""
    return os.environ.get(FORCED, "")


def peer_folder(peer: str, level: str | None = None) -> Path:
    """Return the folder of a peer's environment at the forced level, or at `level`."""
    level = forced() if level is None else level
    return PEERS / (f"{peer}-{level}" if level and peer == "llama_cpp" else peer)


def environment(level: str) -> dict[str, str]:
    """Return what a level adds to the environment; nothing at the machine's own level.

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
    """Return the line of a part that says how the peers were held to the level; none at the machine's own level."""
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
