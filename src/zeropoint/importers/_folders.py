"""What importers of model folders share: the plain config, the tensors left alone, unsigned packed codes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.jsonfile import CARD_NAME, load_json
from zeropoint.qtensor import QuantizedTensor
from zeropoint.scheme import ScaleDtype, Scheme
from zeropoint.tensorfile import DTYPES, TensorFile

SCALE_TYPES: Mapping[str, ScaleDtype] = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


def configured(path: Path, method: str) -> dict[str, Any] | None:
    """The `quantization_config` of a folder that says it was made by `method`; None otherwise, and for an artifact."""
    if not (path / "config.json").is_file() or (path / CARD_NAME).exists():
        return None
    section = load_json(path / "config.json", error=CheckpointError).get("quantization_config")
    return section if isinstance(section, dict) and section.get("quant_method") == method else None


def plain_config(path: Path) -> dict[str, Any]:
    """config.json as it was before quantizing."""
    config = load_json(path / "config.json", error=CheckpointError)
    return {key: value for key, value in config.items() if key != "quantization_config"}


def scale_type(dtype: str) -> ScaleDtype:
    """The scheme's word for a safetensors type. Raises `UnsupportedError`."""
    if dtype not in SCALE_TYPES:
        raise UnsupportedError(f"scales of the type {dtype} are not imported")
    return SCALE_TYPES[dtype]


def float_headers(
    where: Mapping[str, TensorFile], left_out: Collection[str]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of every tensor but those `left_out`. Raises `CheckpointError` for a type that is not known."""
    headers = {name: file.info(name) for name, file in where.items() if name not in left_out}
    for name, (dtype, _) in headers.items():
        if dtype not in DTYPES:
            raise CheckpointError(f"{name} is stored as {dtype}, which is not supported")
    return headers


def unpack_words(words: NDArray[Any], bits: int) -> NDArray[np.int16]:
    """int32 `[m, n]` -> unsigned codes `[m, n * 32 / bits]`, the lowest bits of a word first."""
    if words.ndim != 2 or words.dtype != np.int32:
        raise SchemeError(f"packed codes must be a 2-D int32 tensor, not {words.dtype} {words.shape}")
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    spread = (np.ascontiguousarray(words).view(np.uint32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return spread.reshape(len(words), -1).astype(np.int16)


def unsigned_grid(
    codes: NDArray[np.int16],
    zeros: NDArray[np.int16],
    scales: NDArray[Any],
    bits: int,
    scale_dtype: str,
) -> QuantizedTensor:
    """`(code - zero) * scale` of unsigned codes `[out, in]`, zeros and scales `[out, groups]`, as a weight of ours.

    Symmetric where every zero is the middle code. Raises `SchemeError` for arrays that do not fit each other.
    """
    columns, groups = codes.shape[1], scales.shape[1]
    half = 1 << (bits - 1)
    symmetric = bool((zeros == half).all()) and (bits < 8 or int(codes.min()) > 0)
    grid: dict[str, Any] = {"granularity": "group", "group_size": -(-columns // groups)} if groups > 1 else {}
    scheme = Scheme(bits, symmetric=symmetric, scale_dtype=scale_type(scale_dtype), **grid)
    zero = zeros - half
    if not symmetric and not (scheme.qmin <= int(zero.min()) and int(zero.max()) <= scheme.qmax):
        raise SchemeError("a zero point lies outside the codes")
    zero_point = None if symmetric else np.ascontiguousarray(zero.astype(np.int8))
    scale = np.ascontiguousarray(scales.astype(np.float32))
    return QuantizedTensor(scheme, (codes - half).astype(np.int8), scale, zero_point)
