"""A quantized model folder in transformers, for `exports.py`: run where the tool that made it is installed.

    PYTHON benchmarks/runners/transformers.py FOLDER REQUEST.npz RESULT.npz

REQUEST and RESULT are those of `llama_cpp.py`. Weights are dequantized to float32 by the tool's own code.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch


def load(folder: Path) -> Any:
    method = json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"]
    if method in ("gptq", "awq"):
        from gptqmodel import BACKEND, GPTQModel

        # It loads no float32, and bfloat16 would round the scales, stored as float16: loaded so, then widened
        model = GPTQModel.load(str(folder), device="cpu", dtype=torch.float16, backend=BACKEND.TORCH).model
        return unpacked(torch.nn.Module.float(model))
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def unpacked(model: Any) -> Any:
    """AWQ layers as float32 ones of the weights that GPTQModel's own code reads: its kernel multiplies in float16."""
    from gptqmodel.nn_modules.qlinear.torch_awq import AwqTorchLinear
    from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

    for name, module in list(model.named_modules()):
        if isinstance(module, AwqTorchLinear):
            scales = module.scales.float()
            weight = dequantize_gemm(module.qweight, module.qzeros, scales, module.bits, module.group_size)
            plain = torch.nn.Linear(*weight.shape, bias=module.bias is not None)
            plain.weight.copy_(weight.T)
            if module.bias is not None:
                plain.bias.copy_(module.bias)
            model.set_submodule(name, plain)
    return model


def main() -> None:
    folder, request, result = (Path(each) for each in sys.argv[1:])
    asked = np.load(request)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = asked["text"].tobytes().decode()
    with torch.inference_mode():
        model = load(folder).eval()
        logits = [model(torch.from_numpy(row)[None]).logits[0].float().numpy() for row in asked["windows"]]
        prompt = torch.from_numpy(asked["prompt"])[None]
        count = int(asked["new_tokens"])
        model.generation_config.eos_token_id = None  # an end of text is a token like others here
        found = model.generate(input_ids=prompt, max_new_tokens=count, do_sample=False)
    np.savez(
        result,
        logits=np.stack(logits),
        greedy=found[0, prompt.shape[1] :].numpy(),
        ids=np.array(tokenizer.encode(text, add_special_tokens=False), np.int64),
    )


if __name__ == "__main__":
    main()
