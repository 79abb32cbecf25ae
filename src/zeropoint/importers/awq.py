"""Import of AWQ folders in AutoAWQ's formats "gemm" and "gemv": 4-bit codes in groups, `w = (code - zero) * scale`.

Tensors of a module in format gemm: `qweight` int32 `[in, out / 8]`, `qzeros` int32 `[groups, out / 8]`, `scales`
`[groups, out]`. A word holds eight columns, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits.

Tensors in format gemv: `qweight` int32 `[out, in / 8]`, `qzeros` int32 `[out, words]`, `scales` `[out, 8 * words]`. A
word holds eight values in natural order. `qzeros` and `scales` have padding after the last group.

Layers in `modules_to_not_convert` are stored as floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.files.model_files import model_files
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.importers import Source, _layers
from zeropoint.importers._folders import (
    configured,
    float_headers,
    plain_config,
    refuse_config,
    unpack_words,
    unsigned_grid,
)
from zeropoint.sources import folder, quantized
from zeropoint.values.qtensor import QuantizedTensor, Weight

METHOD = quantized.AWQ
LEAVES = ("qweight", "qzeros", "scales")
BITS = 4

#: Position in a gemm word of each of its eight columns.
PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def recognizes(path: Path) -> bool:
    """Return whether `path` is an AWQ folder."""
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    """Open an AWQ folder.

    Raises `UnsupportedError` for a form that is not read, `CheckpointError` for damaged files.
    """
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    return open_packed(path, section, METHOD)


def open_packed(path: Path, section: Mapping[str, Any], method: str) -> Source:
    """Open a folder with tensors in AWQ's layout, written by AutoAWQ or AutoRound (`method`)."""
    gemv = str(section.get("version") or section.get("format") or "gemm").lower() == "gemv"
    config, files = plain_config(path), folder.weight_files(path)
    where = folder.open_files(files)
    modules = sorted(name.removesuffix(".qweight") for name in where if name.endswith(".qweight"))
    own = {f"{module}.{leaf}" for module in modules for leaf in LEAVES}
    if missing := own - set(where):
        raise CheckpointError(f"{path} lacks the tensor {min(missing)}: download or copy it again")
    tensors = float_headers(where, own)
    sizes: dict[str, int] = {}
    for module in modules:
        _, shape = where[f"{module}.qweight"].info(f"{module}.qweight")
        if len(shape) != 2 or min(shape) < 1:
            raise CheckpointError(f"{module}.qweight has the shape {shape}, which is no matrix")
        rows, columns = (shape[0], shape[1] * 8) if gemv else (shape[1] * 8, shape[0])
        _layers.check_bits(section, module, BITS)
        sizes[f"{module}.weight"] = _layers.group_size(section, module, columns)
        tensors[f"{module}.weight"] = ("F32", (rows, columns))
    read = partial(_read, where, sizes, gemv)
    return Source(method, config, tuple(files), tensors, read, lambda _: model_files(path))


def _read(where: Mapping[str, TensorFile], sizes: Mapping[str, int], gemv: bool, name: str) -> Weight:
    """Return a parameter: a weight in `sizes` (name -> group size) as a `QuantizedTensor`, any other as floats."""
    if name not in sizes:
        return where[name].read(name)
    module = name.removesuffix(".weight")
    words, zeros, scales = (where[f"{module}.{leaf}"].read(f"{module}.{leaf}") for leaf in LEAVES)
    dtype = where[f"{module}.scales"].info(f"{module}.scales")[0]
    decode = _gemv if gemv else _gemm
    try:
        return decode(words, zeros, scales, dtype, sizes[name])
    except (SchemeError, ValueError, IndexError) as cause:
        raise CheckpointError(f"{name}: {cause}") from cause


def _gemm(
    words: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], dtype: str, size: int
) -> QuantizedTensor:
    """Return a weight from its tensors in format gemm."""
    return unsigned_grid(_columns(words).T, _columns(zeros).T, scales.T, BITS, dtype, size)


def _gemv(
    words: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], dtype: str, size: int
) -> QuantizedTensor:
    """Return a weight from its tensors in format gemv."""
    codes = unpack_words(words, BITS)
    groups = -(-codes.shape[1] // size)
    return unsigned_grid(codes, unpack_words(zeros, BITS)[:, :groups], scales[:, :groups], BITS, dtype, size)


def _columns(words: NDArray[Any]) -> NDArray[np.int16]:
    """Unpack int32 words `[m, n]` of format gemm into codes `[m, 8 * n]`, in column order."""
    codes = unpack_words(words, BITS)
    return codes.reshape(len(words), -1, 8)[:, :, PLACES].reshape(len(words), -1)
