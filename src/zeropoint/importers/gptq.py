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
from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.importers import Source
from zeropoint.importers._folders import configured, float_headers, plain_config, scale_type
from zeropoint.qtensor import QuantizedTensor, Weight
from zeropoint.quantization.pipeline import companion_files
from zeropoint.scheme import Scheme
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
    if bits not in (2, 4, 8):
        raise UnsupportedError(f"{path}: GPTQ codes of {bits!r} bits are not imported")
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
    codes = _unpack(part["qweight"].T, bits)
    scale = np.ascontiguousarray(part["scales"].T.astype(np.float32))
    zeros = (_unpack(part["qzeros"], bits) + shift).T
    columns, groups = codes.shape[1], scale.shape[1]
    size = _group_size(part.get("g_idx"), columns, groups)
    half = 1 << (bits - 1)
    grid: dict[str, Any] = {"granularity": "group", "group_size": size} if groups > 1 else {}
    symmetric = bool((zeros == half).all()) and (bits < 8 or int(codes.min()) > 0)
    scheme = Scheme(bits, symmetric=symmetric, scale_dtype=scale_type(scale_dtype), **grid)
    zero = zeros - half
    if not symmetric and not (scheme.qmin <= int(zero.min()) and int(zero.max()) <= scheme.qmax):
        raise SchemeError("a zero point lies outside the codes")
    zero_point = None if symmetric else np.ascontiguousarray(zero.astype(np.int8))
    return QuantizedTensor(scheme, (codes - half).astype(np.int8), scale, zero_point)


def _group_size(index: NDArray[Any] | None, columns: int, groups: int) -> int:
    size = -(-columns // groups)
    if index is not None and not np.array_equal(index.reshape(-1), np.arange(columns) // size):
        raise UnsupportedError("its groups are of scattered inputs (activation order), which is not kept")
    return size


def _unpack(words: NDArray[Any], bits: int) -> NDArray[np.int16]:
    """int32 `[m, n]` -> unsigned codes `[m, n * 32 / bits]`, the lowest bits of a word first."""
    if words.ndim != 2 or words.dtype != np.int32:
        raise SchemeError(f"packed codes must be a 2-D int32 tensor, not {words.dtype} {words.shape}")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    spread = (np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return spread.reshape(len(words), -1).astype(np.int16)
