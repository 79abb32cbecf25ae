"""GGUF sources (F16, Q8_0, Q4_0, Q4_1, K-quants), dequantized by transformers' own reader.

Unlike a safetensors folder, a GGUF file is read whole: transformers has no lazy reader for it, so the FP32 model is
held in memory while it is quantized again.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zeropoint.errors import CheckpointError
from zeropoint.ggufile import MAGIC, GgufFile

logger = logging.getLogger(__name__)


def find(path: Path) -> Path | None:
    """The GGUF file that `path` is, or that a folder without config.json holds; None when there is none.

    Raises `CheckpointError` when a folder holds several.
    """
    if path.is_file():
        return path
    if (path / "config.json").exists():
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{path} holds {len(files)} GGUF files: give the path of one of them")
    return files[0] if files else None


def load(path: Path) -> tuple[Any, dict[str, torch.Tensor]]:
    """`(config, state dict in float32)` of a GGUF file. Raises `CheckpointError`."""
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise CheckpointError(
                f"{path} is not a GGUF file: give a model folder, a .gguf file or a hub name"
            )
    GgufFile(path)  # transformers' reader trusts the header; this does not
    try:
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model, info = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True
        )
    except Exception as cause:  # transformers' reader raises whatever the damaged field leads to
        reason = " ".join(str(cause).split())[:200] or type(cause).__name__
        raise CheckpointError(f"{path} cannot be read by transformers' GGUF reader: {reason}") from cause
    if unread := sorted({*info["missing_keys"], *(each[0] for each in info["mismatched_keys"])}):
        # transformers would go on with random numbers in their place
        raise CheckpointError(
            f"{path} cannot be read by transformers' GGUF reader: {unread[0]} is missing or has another shape"
        )
    config.architectures = [type(model).__name__]
    return config, {name: value.detach() for name, value in model.state_dict().items()}
