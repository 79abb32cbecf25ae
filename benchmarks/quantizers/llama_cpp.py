"""llama.cpp's own quantizer with an importance matrix, through llama-cpp-python's C API."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from contestant import import_driver
from quantizer import Calibration

HEAD = "embedding = head quantized too"
FORMATS = {
    "Q8_0": ("8 bits", HEAD),
    "Q5_0": ("5 bits, groups of 32", f"{HEAD}; imatrix"),
    "Q5_1": ("5 bits, groups of 32", f"{HEAD}; imatrix; asymmetric"),
    "Q4_0": ("4 bits, groups of 32", f"{HEAD}; imatrix"),
    "Q4_1": ("4 bits, groups of 32", f"{HEAD}; imatrix; asymmetric"),
    "Q4_K_M": ("4 bits, mixed with wider", f"{HEAD}; imatrix; rows of 576 fall back to Q5_0"),
    "Q3_K_M": ("3 bits, mixed with wider", f"{HEAD}; imatrix; rows of 576 fall back to Q4_0"),
}
engine = import_driver(Path(__file__).parents[1] / "peers" / "llama_cpp.py")


def quantize(
    model: Path, out: Path, fmt: str, calibration: Calibration
) -> Iterator[tuple[str, np.ndarray, int]]:
    f16, file = out / "f16.gguf", out / "model.gguf"
    engine.write_f16(model, f16)
    family = engine.read_config(model)[1]
    convert(f16, file, fmt, {matrix_name(family, name): m for name, m in calibration.moments.items()})
    f16.unlink()
    return weights(model, file)


def convert(source: Path, file: Path, fmt: str, moments: dict[str, np.ndarray], *, threads: int = 0) -> None:
    """llama.cpp's quantizer, from a float GGUF file; 0 threads are as many as it likes."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{fmt}")
    matrix = importance(moments)  # points into `moments`: both must outlive the call
    params.imatrix, params.nthread = matrix, threads
    if llama_cpp.llama_model_quantize(str(source).encode(), str(file).encode(), params):
        raise SystemExit(f"llama.cpp could not quantize {source} to {fmt}")


def matrix_name(family: Any, name: str) -> str:
    """Return GGUF's name of the weight that a layer multiplies by: a tied head multiplies by the embedding."""
    return "token_embd.weight" if name == "lm_head.weight" else str(family.gguf_name(name))


def importance(moments: dict[str, np.ndarray]) -> ctypes.Array:
    """Return `moments`, by GGUF's names, as llama.cpp's array of `{name, data, size}`, which a null name ends."""
    import llama_cpp

    entries = (llama_cpp.llama_model_imatrix_data * (len(moments) + 1))()
    for entry, (name, moment) in zip(entries, moments.items(), strict=False):
        entry.name = name.encode()
        entry.data = moment.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        entry.size = moment.size
    return entries


def weights(model: Path, file: Path) -> Iterator[tuple[str, np.ndarray, int]]:
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors import safe_open

    config, family = engine.read_config(model)
    with safe_open(model / "model.safetensors", "np") as tensors:
        names = {family.gguf_name(name): name for name in tensors.keys()}  # noqa: SIM118  (not a dict)
    names.setdefault("output.weight", "lm_head.weight")
    for tensor in GGUFReader(file).tensors:
        name = names[tensor.name]
        weight = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1])
        yield name, family.from_gguf(name, weight, config), int(tensor.n_bytes)
