"""transformers loads our artifacts through compressed-tensors, and computes the same logits as their meaning.

"Their meaning" is the plain float32 model with every weight replaced by `dequantize()` and every int8 input of a
quantized linear rounded as compressed-tensors rounds it (scale = absmax / 127.5, codes -128..127; int16 inputs stay
float there). The two agree to 1e-5 of the largest logit; they are usually equal bit by bit.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from zeropoint import artifact
from zeropoint.artifact.format import targets
from zeropoint.quantization import quantize_checkpoint
from zeropoint.values.qtensor import QuantizedTensor

Tiny = Callable[[str], Path]


def load(folder: Path) -> torch.nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # compressed-tensors and pydantic, about themselves
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True
        )
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[key], (key, info[key])
    return model.eval()


def meaning(source: Path, folder: Path) -> torch.nn.Module:
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    opened = artifact.open(folder)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, weight in opened.stream():
        values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight.astype("float32")
        parameters[name].data.copy_(torch.from_numpy(values))
    for path, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        name = opened.layout.tied.get(f"{path}.weight", f"{path}.weight")
        scheme = opened.plan.choices[name].scheme
        if scheme is not None and scheme.activation is not None and scheme.activation.bits == 8:
            size = scheme.activation.group_size
            module.register_forward_pre_hook(lambda _m, inputs, size=size: (rounded(inputs[0], size),))
    return model


def rounded(x: torch.Tensor, group: int) -> torch.Tensor:
    grouped = x.unflatten(-1, (-1, group or x.shape[-1]))
    scale = grouped.abs().amax(-1, keepdim=True) / 127.5
    scale = torch.where(scale == 0, torch.finfo(torch.float32).eps, scale)
    return ((grouped / scale).clamp(-128, 127).round() * scale).reshape(x.shape)


def assert_same_logits(source: Path, folder: Path, tokens: int) -> None:
    theirs, ours = load(folder), meaning(source, folder)
    ids = torch.randint(0, ours.config.vocab_size, (2, tokens), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, got = ours(ids).logits, theirs(ids).logits
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    "format",
    ["int8", "int4", "int8:a8token", "int4:g32:a8g32", "int3:g16:sym:bf16", "int8:tensor:asym:fp32", "fp16"],
)
@pytest.mark.parametrize("name", ["llama_tied", "llama_untied"])
def test_llama(name: str, format: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    source = tiny_checkpoint(name)
    quantize_checkpoint(source, tmp_path / "out", format=format)
    assert_same_logits(source, tmp_path / "out", 20)


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral", "phi", "opt", "bloom", "gpt_neox"])
def test_other_families(name: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    source = tiny_checkpoint(name)
    quantize_checkpoint(source, tmp_path / "out", format="int4")
    assert_same_logits(source, tmp_path / "out", 12)


@pytest.mark.parametrize("name", ["gpt2", "mixtral", "gemma2"])
def test_what_transformers_cannot_load_it_refuses(name: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    quantize_checkpoint(tiny_checkpoint(name), tmp_path / "out", format="int8")
    section = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert section["not_loadable_by_transformers"]
    with pytest.raises(ValueError, match="not_loadable_by_transformers"):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_tied_embedding_is_stored_once(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / "out", format="int8")
    model = load(tmp_path / "out")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert model.lm_head.weight.dtype == torch.int8


def test_targets_are_compact_and_exact() -> None:
    everything = [f"m.layers.{i}.{leaf}" for i in range(12) for leaf in ("q", "k")] + ["lm_head"]
    every_q = [name for name in everything if name.endswith("q")]
    assert targets(every_q, everything) == [r"re:^m\.layers\.\d+\.q$"]
    assert targets(every_q[1:], everything) == every_q[1:]
    assert targets(["lm_head"], everything) == ["lm_head"]


@pytest.mark.reference_model
@pytest.mark.parametrize(("format", "ratio"), [("int8", 0.52), ("int4", 0.34)])
def test_the_real_model(
    format: str, ratio: float, reference_model: Path, reference_artifact: Callable[[str], Path]
) -> None:
    folder = reference_artifact(format)
    told = json.loads(folder.with_name(f"{format}.json").read_text())
    assert told["weights_bytes"] <= ratio * told["source_bytes"]
    of_folder, of_model = (
        sum(path.stat().st_size for path in files.iterdir()) for files in (folder, reference_model)
    )
    assert of_folder <= ratio * of_model
    assert_same_logits(reference_model, folder, 16)
