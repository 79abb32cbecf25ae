"""llm-compressor: GPTQ (activation order static, its default), AWQ (default grid) and round to nearest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from quantizer import Calibration, linear_layers, stored_bytes

AWQ_WINDOWS = 8  # its grid of 20 steps runs each block 60 times
NOTE = "asymmetric; embedding = head bf16"
NOTES = {"gptq": NOTE, "awq": f"{NOTE}; on {AWQ_WINDOWS} of the windows"}
# bits, group size (0: a scale per channel), kind of row
SETTINGS = {
    "int8-channel": (8, 0, "8 bits"),
    "int4-g32": (4, 32, "4 bits, groups of 32"),
    "int4-g64": (4, 64, "4 bits, groups of 64"),
    "int4-g128": (4, 128, "4 bits, groups of 128"),
    "int4-channel": (4, 0, "4 bits, per channel"),
    "int3-g32": (3, 32, "3 bits, groups of 32"),
}
FORMATS = {
    f"{fmt}/{algorithm}": (kind, note)
    for fmt, (_, _, kind) in SETTINGS.items()
    for algorithm, note in NOTES.items()
}


def quantize(model: Path, out: Path, fmt: str, calibration: Calibration) -> Iterator[tuple[str, Any, int]]:
    import torch
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    setting, algorithm = fmt.split("/")
    bits, group_size, _ = SETTINGS[setting]
    module = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
    # AWQ pins memory for copies to an accelerator, which torch refuses where there is none
    IntermediatesCache.pin_memory = lambda *_: None
    tokens = torch.from_numpy(calibration.tokens[: AWQ_WINDOWS if algorithm == "awq" else None])
    windows = Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": torch.ones_like(tokens).tolist()}
    )
    oneshot(
        model=module,
        processor=AutoTokenizer.from_pretrained(model),
        dataset=windows,
        recipe=recipe(algorithm, bits, group_size),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
    )
    return weights(module, bits)


def recipe(algorithm: str, bits: int, group_size: int) -> list[Any]:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    grouped = {"strategy": "group", "group_size": group_size} if group_size else {"strategy": "channel"}
    numbers = QuantizationArgs(num_bits=bits, type="int", symmetric=False, **grouped)
    scheme = QuantizationScheme(targets=["Linear"], weights=numbers)
    chosen = {"config_groups": {"group_0": scheme}, "ignore": ["lm_head"]}
    if algorithm == "gptq":
        return [GPTQModifier(**chosen)]
    return [AWQModifier(), QuantizationModifier(**chosen)]


def weights(module: Any, bits: int) -> Iterator[tuple[str, Any, int]]:
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize

    for name, layer in linear_layers(module).items():
        scheme = layer.quantization_scheme.weights
        # in float32: in the model's bfloat16 the products of code and scale would be rounded once more
        weight = fake_quantize(
            layer.weight.float(), layer.weight_scale.float(), layer.weight_zero_point, scheme
        )
        yield name, weight, stored_bytes(weight.shape, bits, layer.weight_scale.numel(), zero_points=True)
    for name, parameter in module.named_parameters():
        if "norm" in name:  # AWQ scales them
            yield name, parameter, parameter.nbytes
