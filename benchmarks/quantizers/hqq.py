"""HQQ (half-quadratic quantization): no calibration text, a few fixed-point steps per weight."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantizer import Calibration, linear_layers, stored_bytes

NOTE = "without text; embedding = head bf16"
# bits, group size (None: a scale per channel), kind of row
SETTINGS = {
    "int8-g64": (8, 64, "8 bits"),
    "int4-g32": (4, 32, "4 bits, groups of 32"),
    "int4-g64": (4, 64, "4 bits, groups of 64"),
    "int4-g128": (4, 128, "4 bits, groups of 128"),
    "int4-channel": (4, None, "4 bits, per channel"),
    "int3-g32": (3, 32, "3 bits, groups of 32"),
}
STRADDLES = "; groups that do not divide a row run on in the next"
FORMATS = {
    fmt: (kind, NOTE + (STRADDLES if group_size == 128 else ""))
    for fmt, (_, group_size, kind) in SETTINGS.items()
}


def quantize(model: Path, out: Path, fmt: str, calibration: Calibration) -> Iterator[tuple[str, Any, int]]:
    import torch
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear
    from transformers import AutoModelForCausalLM

    bits, group_size, _ = SETTINGS[fmt]
    module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = BaseQuantizeConfig(nbits=bits, group_size=group_size, axis=1)
    options = {"compute_dtype": torch.float32, "device": "cpu", "del_orig": False}
    made = {name: HQQLinear(layer, config, **options) for name, layer in linear_layers(module).items()}
    return weights(made, bits, group_size)


def weights(made: dict[str, Any], bits: int, group_size: int | None) -> Iterator[tuple[str, Any, int]]:
    for name, layer in made.items():
        weight = layer.dequantize()
        groups = weight.numel() // (group_size or weight.shape[1])
        # its zero points are floats as wide as its scales
        yield name, weight, stored_bytes(weight.shape, bits, groups, zero_points=False, scale_bytes=4)
