"""Helpers of the importers of model folders: config.json, headers of float tensors, unsigned packed codes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from zeropoint.dtypes import BY_STORED
from zeropoint.errors import CheckpointError, SchemeError, UnsupportedError
from zeropoint.files.json_file import CARD_NAME, load_json
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.sources import quantized
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import ScaleDtype, Scheme


def configured(path: Path, method: str) -> dict[str, Any] | None:
    """Return the `quantization_config` of a folder whose quantization method is `method`, else None.

    Returns None for an artifact.
    """
    if (path / CARD_NAME).exists():
        return None
    section = quantized.section_of(path)
    return section if section is not None and quantized.method_of(section) == method else None


def refuse_config(path: Path, section: Mapping[str, Any]) -> None:
    """Raise `UnsupportedError` if a `quantization_config` does not allow the import."""
    if (reason := quantized.why_not_imported(section)) is not None:
        raise UnsupportedError(f"{path} cannot be imported: {reason}; {quantized.ADVICE}")


def plain_config(path: Path) -> dict[str, Any]:
    """Return config.json without the quantization section."""
    config = load_json(path / "config.json", error=CheckpointError)
    return {k: v for k, v in config.items() if k not in ("quantization_config", "compression_config")}


def scale_type(dtype: str) -> ScaleDtype:
    """Return a scheme's name of a safetensors type. Raises `UnsupportedError` if scales cannot have the type."""
    format = BY_STORED[dtype].format if dtype in BY_STORED else ""
    if not format:
        raise UnsupportedError(f"scales of the type {dtype} are not imported")
    return cast(ScaleDtype, format)


def float_headers(
    where: Mapping[str, TensorFile], left_out: Collection[str]
) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return the type and shape of every tensor except `left_out`. Raises `CheckpointError` for an unknown type."""
    headers = {name: file.info(name) for name, file in where.items() if name not in left_out}
    for name, (dtype, _) in headers.items():
        if dtype not in BY_STORED:
            raise CheckpointError(f"{name} is stored as {dtype}, which is not supported")
    return headers


def unpack_words(words: NDArray[Any], bits: int) -> NDArray[np.int16]:
    """Unpack int32 words `[m, n]` into unsigned codes `[m, n * 32 / bits]`.

    Each row is one stream of bits, from the lowest bit of its first word; a code may span two words. Raises
    `SchemeError` unless the bits of a row divide into whole codes.
    """
    if words.ndim != 2 or words.dtype != np.int32:
        raise SchemeError(f"packed codes must be a 2-D int32 tensor, not {words.dtype} {words.shape}")
    rows = np.ascontiguousarray(words, "<i4")
    if 32 % bits:
        if rows.shape[1] * 32 % bits:
            raise SchemeError(f"{rows.shape[1]} words a row do not hold whole codes of {bits} bits")
        stream = np.unpackbits(rows.view(np.uint8), axis=1, bitorder="little").reshape(len(rows), -1, bits)
        place_values = np.int16(1) << np.arange(bits, dtype=np.int16)
        codes: NDArray[np.int16] = stream.astype(np.int16) @ place_values
        return codes
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    fields = (rows.view(np.uint32)[:, :, None] >> shifts) & ((1 << bits) - 1)
    return fields.reshape(len(words), -1).astype(np.int16)


def unsigned_grid(
    codes: NDArray[np.int16],
    zeros: NDArray[np.int16],
    scales: NDArray[Any],
    bits: int,
    scale_dtype: str,
    group_size: int,
) -> QuantizedTensor:
    """Return the weight `(code - zero) * scale` as a `QuantizedTensor`.

    `codes` are unsigned, `[out, in]`; `zeros` and `scales` are `[out, groups]`. The scheme is symmetric if every zero
    is the middle code. Raises `SchemeError` if the shapes do not match or a zero is not a code.
    """
    columns, groups = codes.shape[1], scales.shape[1]
    if groups != -(-columns // group_size):
        raise SchemeError(f"{groups} scales a row do not fit {columns} inputs in groups of {group_size}")
    half = 1 << (bits - 1)
    symmetric = bool((zeros == half).all()) and (bits < 8 or int(codes.min()) > 0)
    grid: dict[str, Any] = {"granularity": "group", "group_size": group_size} if groups > 1 else {}
    scheme = Scheme(bits, symmetric=symmetric, scale_dtype=scale_type(scale_dtype), **grid)
    zero = zeros - half
    if not symmetric and not (scheme.qmin <= int(zero.min()) and int(zero.max()) <= scheme.qmax):
        raise SchemeError(f"a zero point is {int(zeros.max())}, which is no code of {bits} bits")
    zero_point = None if symmetric else np.ascontiguousarray(zero.astype(np.int8))
    scale = np.ascontiguousarray(scales.astype(np.float32))
    return QuantizedTensor(scheme, (codes - half).astype(np.int8), scale, zero_point)
