"""What importers of model folders share: the config without its quantization section, and the tensors left alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from zeropoint.errors import CheckpointError, UnsupportedError
from zeropoint.jsonfile import CARD_NAME, load_json
from zeropoint.scheme import ScaleDtype
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
