"""AWQ folders, as AutoAWQ's versions "gemm" and "gemv" write them: 4 bits in groups.

Of a module in version gemm: `qweight` int32 `[in, out / 8]`, `qzeros` int32 `[groups, out / 8]`, `scales`
`[groups, out]`; eight columns a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits. In version gemv:
`qweight` int32 `[out, in / 8]`, `qzeros` int32 `[out, words]`, `scales` `[out, 8 * words]`, in their own order, with
room behind the last group. A weight is `(code - zero) * scale`. Layers of `modules_to_not_convert` are stored as
floats.
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

#: Where in a word each of eight columns lies.
PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def recognizes(path: Path) -> bool:
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    section = configured(path, METHOD)
    assert section is not None
    refuse_config(path, section)
    return open_packed(path, section, METHOD)


def open_packed(path: Path, section: Mapping[str, Any], method: str) -> Source:
    """A folder of AWQ's tensors, whoever wrote it."""
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
    return unsigned_grid(_columns(words).T, _columns(zeros).T, scales.T, BITS, dtype, size)


def _gemv(
    words: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], dtype: str, size: int
) -> QuantizedTensor:
    codes = unpack_words(words, BITS)
    groups = -(-codes.shape[1] // size)
    return unsigned_grid(codes, unpack_words(zeros, BITS)[:, :groups], scales[:, :groups], BITS, dtype, size)


def _columns(words: NDArray[Any]) -> NDArray[np.int16]:
    """int32 `[m, n]` -> codes `[m, 8 n]` in the order of the columns."""
    codes = unpack_words(words, BITS)
    return codes.reshape(len(words), -1, 8)[:, :, PLACES].reshape(len(words), -1)
