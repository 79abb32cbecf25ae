"""GPTQModel: GPTQ with its default options (symmetric, group-aware order), read back from what it saves."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from quantizer import Calibration, stored_bytes

NOTE = "symmetric; embedding = head bf16"
# group size (-1: a scale per channel), kind of row
SETTINGS = {
    "int4-g32": (32, "4 bits, groups of 32"),
    "int4-g64": (64, "4 bits, groups of 64"),
    "int4-g128": (128, "4 bits, groups of 128"),
    "int4-channel": (-1, "4 bits, per channel"),
}
FORMATS = {f"{fmt}/gptq": (kind, NOTE) for fmt, (_, kind) in SETTINGS.items()}
BITS = 4


def quantize(
    model: Path, out: Path, fmt: str, calibration: Calibration
) -> Iterator[tuple[str, np.ndarray, int]]:
    # on few cores it makes one worker, and then asks it for two
    os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
    import torch
    from gptqmodel import GPTQModel, QuantizeConfig

    group_size, _ = SETTINGS[fmt.split("/")[0]]
    learner = GPTQModel.load(str(model), QuantizeConfig(bits=BITS, group_size=group_size), device="cpu")
    rows = torch.from_numpy(calibration.tokens)
    learner.quantize([{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in rows])
    learner.save(str(out / "gptq"))
    return weights(out / "gptq")


def weights(folder: Path) -> Iterator[tuple[str, np.ndarray, int]]:
    from safetensors.torch import load_file

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    # version 1 of the format stores zero points less one
    shift = 1 if config.get("checkpoint_format", config.get("format", "gptq")) == "gptq" else 0
    tensors = {}
    for file in folder.glob("*.safetensors"):
        tensors.update(load_file(file))
    for key in [key for key in tensors if key.endswith(".qweight")]:
        stem = key.removesuffix(".qweight")
        codes = unpack(tensors[key].numpy())  # [in, out]
        # [groups, out / 8]: packed along the other axis
        zeros = unpack(np.ascontiguousarray(tensors[f"{stem}.qzeros"].numpy().T)).T + shift
        scales, groups = tensors[f"{stem}.scales"].float().numpy(), tensors[f"{stem}.g_idx"].numpy()
        weight = ((codes - zeros[groups]) * scales[groups]).T
        yield f"{stem}.weight", weight, stored_bytes(weight.shape, BITS, scales.size, zero_points=False)


def unpack(words: np.ndarray) -> np.ndarray:
    """int32 `[n / 8, m]`, eight 4-bit codes a word down a column, the lowest first -> `[n, m]`."""
    shifts = np.arange(0, 32, BITS, dtype=np.uint32)[None, :, None]
    codes = (words.view(np.uint32)[:, None, :] >> shifts) & 15
    return codes.reshape(-1, words.shape[1]).astype(np.int32)
