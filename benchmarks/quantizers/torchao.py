"""torchao's weight-only formats: round to nearest, or its port of HQQ's scales."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantizer import Calibration, linear_layers, stored_bytes

NOTE = "round to nearest, asymmetric; embedding = head bf16"
# bits, group size (0: a scale per channel), kind of row
SETTINGS = {
    "int8-channel": (8, 0, "8 bits"),
    "int4-g32": (4, 32, "4 bits, groups of 32"),
    "int4-g64": (4, 64, "4 bits, groups of 64"),
    "int4-g128": (4, 128, "4 bits, groups of 128"),
    "int4-channel": (4, 0, "4 bits, per channel"),
    "int3-g32": (3, 32, "3 bits, groups of 32"),
}
FORMATS = {fmt: (kind, NOTE) for fmt, (_, _, kind) in SETTINGS.items()}


def quantize(model: Path, out: Path, fmt: str, calibration: Calibration) -> Iterator[tuple[str, Any, int]]:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, PerAxis, PerGroup, quantize_
    from torchao.quantization.quant_primitives import MappingType
    from transformers import AutoModelForCausalLM

    bits, group_size, _ = SETTINGS[fmt]
    module = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    layers = linear_layers(module)
    config = IntxWeightOnlyConfig(
        weight_dtype=getattr(torch, f"int{bits}"),
        granularity=PerGroup(group_size) if group_size else PerAxis(0),
        mapping_type=MappingType.ASYMMETRIC,
    )
    chosen = {id(layer) for layer in layers.values()}
    quantize_(module, config, filter_fn=lambda layer, _: id(layer) in chosen)
    return weights(layers, bits, group_size)


def weights(layers: dict[str, Any], bits: int, group_size: int) -> Iterator[tuple[str, Any, int]]:
    for name, layer in layers.items():
        rows, columns = layer.weight.shape
        groups = rows * (columns // group_size if group_size else 1)
        stored = stored_bytes((rows, columns), bits, groups, zero_points=True)
        yield name, layer.weight.dequantize(), stored
