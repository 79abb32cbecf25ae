"""AutoRound: rounding and clipping learned block by block by signed gradients."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantizer import Calibration, linear_layers, stored_bytes

ITERATIONS = 50
BATCH = 4  # windows of 512 tokens per iteration
NOTE = f"{ITERATIONS} iterations of {BATCH} windows instead of 200 of 8; embedding = head bf16"
# bits, group size, symmetric, kind of row
SETTINGS = {
    "int4-g32": (4, 32, True, "4 bits, groups of 32"),
    "int4-g32-asym": (4, 32, False, "4 bits, groups of 32"),
    "int4-g128": (4, 128, True, "4 bits, groups of 128"),
    "int4-channel": (4, -1, True, "4 bits, per channel"),
    "int3-g32": (3, 32, True, "3 bits, groups of 32"),
}
FORMATS = {fmt: (kind, NOTE) for fmt, (*_, kind) in SETTINGS.items()}


def quantize(model: Path, out: Path, fmt: str, calibration: Calibration) -> Iterator[tuple[str, Any, int]]:
    import torch
    from auto_round import AutoRound
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bits, group_size, symmetric, _ = SETTINGS[fmt]
    module = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    rows = torch.from_numpy(calibration.tokens)
    batches = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in rows]
    learner = AutoRound(
        module,
        tokenizer=AutoTokenizer.from_pretrained(model),
        bits=bits,
        group_size=group_size,
        sym=symmetric,
        iters=ITERATIONS,
        batch_size=BATCH,
        dataset=batches,
        nsamples=len(rows),
        seqlen=rows.shape[1],
        device_map="cpu",
    )
    module, _ = learner.quantize()
    return weights(module, bits, symmetric)


def weights(module: Any, bits: int, symmetric: bool) -> Iterator[tuple[str, Any, int]]:
    for name, layer in linear_layers(module).items():
        stored = stored_bytes(layer.weight.shape, bits, layer.scale.numel(), zero_points=not symmetric)
        yield name, layer.weight, stored
