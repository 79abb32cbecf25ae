"""AWQ folders, as AutoAWQ's "gemm" version writes them: 4 bits in groups.

Of a module: `qweight` int32 `[in, out / 8]`, `qzeros` int32 `[groups, out / 8]`, `scales` `[groups, out]`; eight
columns a word, in the order 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits. A weight is `(code - zero) * scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.checkpoint import folder
from zeropoint.companions import companion_files
from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.importers import Source
from zeropoint.importers._folders import (
    configured,
    float_headers,
    plain_config,
    unpack_words,
    unsigned_grid,
)
from zeropoint.qtensor import Weight
from zeropoint.tensorfile import TensorFile

METHOD = "awq"
LEAVES = ("qweight", "qzeros", "scales")
BITS = 4

#: Where in a word each of eight columns lies.
PLACES = np.argsort([0, 2, 4, 6, 1, 3, 5, 7])


def recognizes(path: Path) -> bool:
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    section = configured(path, METHOD)
    assert section is not None
    version = str(section.get("version", "gemm")).lower()
    if section.get("bits", section.get("w_bit")) != BITS or version != "gemm":
        raise UnsupportedError(
            f"{path}: of AWQ's formats only 4 bits in version gemm are imported, not {version[:20]}"
        )
    config, files = plain_config(path), folder.weight_files(path)
    where = folder.open_files(files)
    modules = {name.removesuffix(".qweight") for name in where if name.endswith(".qweight")}
    own = {f"{module}.{leaf}" for module in modules for leaf in LEAVES}
    if missing := own - set(where):
        raise CheckpointError(f"{path} lacks the tensor {min(missing)}: download or copy it again")
    tensors = float_headers(where, own)
    for module in sorted(modules):
        _, shape = where[f"{module}.qweight"].info(f"{module}.qweight")
        if len(shape) != 2:
            raise CheckpointError(f"{module}.qweight has the shape {shape}, which is no matrix")
        tensors[f"{module}.weight"] = ("F32", (shape[1] * 32 // BITS, shape[0]))
    read = partial(_read, where, modules)
    return Source(METHOD, config, tuple(files), tensors, read, lambda _: companion_files(path))


def _read(where: Mapping[str, TensorFile], modules: set[str], name: str) -> Weight:
    module = name.removesuffix(".weight")
    if module not in modules:
        return where[name].read(name)
    words, zeros, scales = (where[f"{module}.{leaf}"].read(f"{module}.{leaf}") for leaf in LEAVES)
    dtype = where[f"{module}.scales"].info(f"{module}.scales")[0]
    try:
        return unsigned_grid(_columns(words).T, _columns(zeros).T, scales.T, BITS, dtype)
    except (SchemeError, ValueError, IndexError) as cause:
        raise CheckpointError(f"{name}: {cause}") from cause


def _columns(words: NDArray[Any]) -> NDArray[np.int16]:
    """int32 `[m, n]` -> codes `[m, 8 n]` in the order of the columns."""
    codes = unpack_words(words, BITS)
    return codes.reshape(len(words), -1, 8)[:, :, PLACES].reshape(len(words), -1)
