"""`prepare_qat` and `convert_qat`: models of several kinds, their artifacts, and the card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import zeropoint
from zeropoint import artifact
from zeropoint.errors import UsageError
from zeropoint.runtime.torch_engine import runner
from zeropoint.training.recipe import convert_qat, prepare_qat, prepared_of, weights_of
from zeropoint.values.qtensor import QuantizedTensor

TOKENS = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0))
FORMATS = {
    "llama_tied": "int4",
    "llama_untied": "int3:g32:asym:bf16:a8g32",
    "gpt2": "int8:channel:sym:bf16:a8token",
    "gemma2": "int4:g16:sym:bf16:a16token",
    "mixtral": "int4",
    "qwen2_moe": "int8",
}

Checkpoints = Callable[[str], Path]


def steps(model: torch.nn.Module, count: int, rate: float = 2e-3) -> list[float]:
    """Train on the tokens themselves, and return the losses."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _ in range(count):
        loss = model(input_ids=TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("kind", FORMATS)
def test_trains_converts_and_runs_with_the_same_bits(
    kind: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    model = prepare_qat(tiny_checkpoint(kind), FORMATS[kind])
    before = {n: w.codes for n, w in weights_of(model) if isinstance(w, QuantizedTensor)}
    losses = steps(model, 4)
    assert losses[-1] < losses[0]
    for quantizer in prepared_of(model).quantizers.values():
        quantizer.exact = True
    with torch.no_grad():
        logits = model.eval()(input_ids=TOKENS, use_cache=False).logits
    out = convert_qat(model, tmp_path / "out")
    made = artifact.open(out)
    made.verify()
    assert any((made.read(name).codes != codes).any() for name, codes in before.items())
    for name, weight in weights_of(model):
        stored = made.read(name)
        if isinstance(weight, QuantizedTensor):
            np.testing.assert_array_equal(stored.codes, weight.codes)
            np.testing.assert_array_equal(stored.scale, weight.scale)
            assert (stored.zero_point is None) == (weight.zero_point is None)
        else:
            np.testing.assert_array_equal(stored, weight)
    loaded = runner.load_artifact(out)
    with torch.no_grad():
        np.testing.assert_array_equal(
            loaded(input_ids=TOKENS, use_cache=False).logits.numpy(), logits.numpy()
        )
    assert made.card["training"] == {"trained": "in a loop of the user's own"}


def test_starts_from_an_artifact(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source, start = tiny_checkpoint("llama_tied"), tmp_path / "start"
    zeropoint.quantize(source, start, format="int4", algorithm="awq+gptq", calibration_tokens=256)
    opened = artifact.open(start)
    for trainable in ("full", "lora", "scales"):
        model = prepare_qat(source, start=start, trainable=trainable)  # type: ignore[arg-type]
        for name, weight in weights_of(model):
            stored = opened.read(name)
            if isinstance(weight, QuantizedTensor):
                np.testing.assert_array_equal(stored.codes, weight.codes)
                np.testing.assert_array_equal(stored.scale, weight.scale)
            else:
                np.testing.assert_array_equal(stored, weight)
        steps(model, 2)
        if trainable == "scales":
            for name, weight in weights_of(model):
                if isinstance(weight, QuantizedTensor):
                    np.testing.assert_array_equal(opened.read(name).codes, weight.codes)
    with pytest.raises(UsageError, match="another model"):
        prepare_qat(tiny_checkpoint("qwen2"), start=start)


def test_a_loaded_model_trains_from_its_own_weights(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama_tied")
    loaded = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        loaded.model.layers[0].mlp.up_proj.weight *= 3
    model = prepare_qat(loaded, "int8")
    assert model is loaded
    weights = dict(weights_of(model))
    plain = dict(weights_of(prepare_qat(source, "int8")))
    name = "model.layers.0.mlp.up_proj.weight"
    tripled, original = weights[name], plain[name]
    assert isinstance(tripled, QuantizedTensor)
    assert isinstance(original, QuantizedTensor)
    np.testing.assert_allclose(tripled.dequantize(), 3 * original.dequantize(), atol=2 * tripled.scale.max())
    with pytest.raises(UsageError, match="prepared for training already"):
        prepare_qat(model)


def test_a_tied_weight_has_one_set_of_parameters(tiny_checkpoint: Checkpoints) -> None:
    model = prepare_qat(tiny_checkpoint("llama_tied"), "int4")
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    assert len(names) == len(set(names)) == len(list(model.parameters()))
    assert [name for name in names if "lm_head" in name] == []
    torch.testing.assert_close(model.lm_head.weight, model.model.embed_tokens.weight)


def test_unsuitable_arguments_are_refused(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama_tied")
    with pytest.raises(UsageError, match="full, lora, scales"):
        prepare_qat(source, trainable="all")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="quantizes no weight"):
        prepare_qat(source, "fp16")
    with pytest.raises(UsageError, match="rank"):
        prepare_qat(source, trainable="lora", rank=0)
    loaded = AutoModelForCausalLM.from_pretrained(source)
    with pytest.raises(UsageError, match=r"zeropoint\.prepare_qat"):
        convert_qat(loaded, tmp_path / "out")


def test_the_trainer_of_transformers_trains_it(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")
    from transformers import Trainer, TrainingArguments

    model = prepare_qat(tiny_checkpoint("llama_tied"), "int4")
    before = {n: w.scale for n, w in weights_of(model) if isinstance(w, QuantizedTensor)}
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "trainer"), max_steps=2, learning_rate=1e-3, report_to=[], use_cpu=True,
        save_strategy="steps", save_steps=2, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    data = [{"input_ids": window, "labels": window} for window in TOKENS]
    Trainer(model=model, args=arguments, train_dataset=data).train()
    made = artifact.open(convert_qat(model, tmp_path / "out"))
    assert any((made.read(name).scale != scale).any() for name, scale in before.items())
    assert list((tmp_path / "trainer").glob("checkpoint-2/*.safetensors"))
