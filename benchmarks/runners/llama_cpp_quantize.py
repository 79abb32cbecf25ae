"""llama.cpp's own quantizer with an importance matrix, for `gguf_types.py`: run in llama.cpp's own environment.

    build/peers/llama_cpp/bin/python benchmarks/runners/llama_cpp_quantize.py FLOAT.gguf OUT.gguf TYPE MOMENTS.npz

MOMENTS maps each layer's name in the checkpoint to the mean squares `[in]` of its input.
"""

from __future__ import annotations

import os
import sys
from ctypes import c_void_p
from pathlib import Path

import llama_cpp
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from contestant import import_driver


def main() -> None:
    source, out, fmt, file = sys.argv[1:]
    quantizer = import_driver(Path(__file__).parents[1] / "quantizers" / "llama_cpp.py")
    silence = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(silence, c_void_p(0))
    moments = {name: np.ascontiguousarray(values, np.float32) for name, values in np.load(file).items()}
    quantizer.convert(Path(source), Path(out), fmt, moments, threads=len(os.sched_getaffinity(0)))


if __name__ == "__main__":
    main()
