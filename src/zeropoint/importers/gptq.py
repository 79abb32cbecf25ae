"""GPTQ folders, as GPTQModel and AutoGPTQ write them: 2, 4 and 8 bits, groups or channels.

Of a module: `qweight` int32 `[in * bits / 32, out]`, codes packed down a column, the lowest bits first; `scales`
`[groups, out]`; `qzeros` int32 `[groups, out * bits / 32]`, packed along a row, less one in the first version of the
format ("gptq"; "gptq_v2" stores them as they are); `g_idx` `[in]`, the group of each input. A weight is
`(code - zero) * scale`. Groups of scattered inputs (activation order without static groups) have no counterpart and are
refused.
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
from zeropoint.qtensor import QuantizedTensor, Weight
from zeropoint.tensorfile import TensorFile

METHOD = "gptq"
LEAVES = ("qweight", "qzeros", "scales", "g_idx")


def recognizes(path: Path) -> bool:
    return configured(path, METHOD) is not None


def open(path: Path) -> Source:
    section = configured(path, METHOD)
    assert section is not None
    config, files = plain_config(path), folder.weight_files(path)
    where = folder.open_files(files)
    bits = section.get("bits")
    if type(bits) is not int or bits not in (2, 4, 8):
        raise UnsupportedError(f"{path}: GPTQ codes of {str(bits)[:20]} bits are not imported")
    shift = 1 if section.get("checkpoint_format", section.get("format", "gptq")) == "gptq" else 0
    modules = sorted(name.removesuffix(".qweight") for name in where if name.endswith(".qweight"))
    own = {f"{module}.{leaf}" for module in modules for leaf in LEAVES}
    if missing := {key for key in own if not key.endswith("g_idx")} - set(where):
        raise CheckpointError(f"{path} lacks the tensor {min(missing)}: download or copy it again")
    tensors = float_headers(where, own)
    for module in modules:
        _, shape = where[f"{module}.qweight"].info(f"{module}.qweight")
        if len(shape) != 2:
            raise CheckpointError(f"{module}.qweight has the shape {shape}, which is no matrix")
        tensors[f"{module}.weight"] = ("F32", (shape[1], shape[0] * 32 // bits))
    read = partial(_read, where, set(modules), bits, shift)
    return Source(METHOD, config, tuple(files), tensors, read, lambda _: companion_files(path))


def _read(where: Mapping[str, TensorFile], modules: set[str], bits: int, shift: int, name: str) -> Weight:
    module = name.removesuffix(".weight")
    if module not in modules:
        return where[name].read(name)
    part = {leaf: where[key].read(key) for leaf in LEAVES if (key := f"{module}.{leaf}") in where}
    try:
        return _weight(part, where[f"{module}.scales"].info(f"{module}.scales")[0], bits, shift)
    except (SchemeError, ValueError, IndexError) as cause:
        raise CheckpointError(f"{name}: {cause}") from cause


def _weight(part: Mapping[str, NDArray[Any]], scale_dtype: str, bits: int, shift: int) -> QuantizedTensor:
    codes = unpack_words(part["qweight"].T, bits)
    zeros = (unpack_words(part["qzeros"], bits) + shift).T
    weight = unsigned_grid(codes, zeros, part["scales"].T, bits, scale_dtype)
    columns, size = codes.shape[1], weight.scheme.group_size or codes.shape[1]
    index = part.get("g_idx")
    if index is not None and not np.array_equal(index.reshape(-1), np.arange(columns) // size):
        raise UnsupportedError("its groups are of scattered inputs (activation order), which is not kept")
    return weight
