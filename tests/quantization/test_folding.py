"""Folds change no model's function, on any architecture; what would is refused out loud."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import ARCHITECTURES, make_checkpoint
from zeropoint import algorithms, artifact, quantize
from zeropoint.checkpoint import open_checkpoint
from zeropoint.planning import uniform_plan
from zeropoint.quantization import WeightDone, calibrated_blocks, stream
from zeropoint.quantization.folding import _Folder
from zeropoint.values.qtensor import QuantizedTensor

#: Where a fold has nothing to do, which is said too: never that it was taken back.
EXPECTED = re.compile("alone produces their input|routed copies|no scale that lowers")

FORMATS = {"smoothquant": "int8:channel:sym:bf16:a8token", "awq": "int4"}


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 32))


def folded_model(
    folder: Path, algorithm: str, monkeypatch: pytest.MonkeyPatch, keep: tuple[str, ...] = ()
) -> tuple[torch.nn.Module, list[WeightDone], int]:
    """The float model with everything folded and nothing rounded, what was said, and how many folds were made."""
    checkpoint = open_checkpoint(folder)
    values: dict[str, torch.Tensor] = {}
    original, applied = calibrated_blocks.quantize_views, []

    def spy(views, choice, stats):  # type: ignore[no-untyped-def]
        values.update({v.name: v.read().t() if v.transposed else v.read() for v in views})
        return original(views, choice, stats)

    def count(self, names, maker, scale):  # type: ignore[no-untyped-def]
        same = apply(self, names, maker, scale)
        applied.extend([names] * same)
        return same

    apply = _Folder._apply
    monkeypatch.setattr(calibrated_blocks, "quantize_views", spy)
    monkeypatch.setattr(_Folder, "_apply", count)
    steps: list[WeightDone] = []
    plan = uniform_plan(checkpoint, FORMATS[algorithm], algorithm=algorithm, keep=keep)
    made = dict(stream(checkpoint, plan, tokens=tokens(), progress=steps.append))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in made.items():
            if name in values:
                stack, _, expert = name.rpartition(".")
                target = parameters[name] if name in parameters else parameters[stack][int(expert)]
                target.copy_(values[name])
            elif not isinstance(weight, QuantizedTensor) and name in parameters:
                parameters[name].copy_(torch.from_numpy(weight.astype(np.float32)))
    return model, steps, len(applied)


@pytest.mark.parametrize("algorithm", algorithms.names("fold"))
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_folding_leaves_the_logits(
    name: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint(name, tmp_path / name, outliers=name != "gemma2")
    model, steps, applied = folded_model(folder, algorithm, monkeypatch)
    assert [step.warning for step in steps if step.warning and not EXPECTED.search(step.warning)] == []
    assert applied
    check_logits(folder, model)


def test_a_layer_outside_the_group_refuses_the_fold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept layer that is given the same input would see it scaled: the run before and after finds out."""
    folder = make_checkpoint("llama_tied", tmp_path / "model", outliers=True)
    model, steps, applied = folded_model(folder, "awq", monkeypatch, keep=("*.q_proj.*",))
    said = [step.warning for step in steps if step.warning and not EXPECTED.search(step.warning)]
    assert len(said) == 2  # one for each block
    assert all("would change what the block computes" in line and "k_proj" in line for line in said)
    assert applied
    check_logits(folder, model)


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("gpt2", "attn.c_proj", "no norm or linear layer of the block alone produces their input"),
        ("mixtral", "experts.gate_up_proj.0, .*", "their inputs are routed copies"),
    ],
)
def test_what_is_not_folded_is_said(name: str, layer: str, why: str, tmp_path: Path) -> None:
    """Once for each block, in the summary and in the card."""
    folder = make_checkpoint(name, tmp_path / "model", outliers=True)
    summary = quantize(folder, tmp_path / "out", format="int4", algorithm="awq", calibration_tokens=512)
    said = [
        line for line in summary.warnings if re.search(f"nothing was folded into .*{layer}.*: {why}", line)
    ]
    assert len(said) == 2
    assert set(said) <= set(artifact.open(tmp_path / "out").card["notes"])


def test_what_is_stored_is_what_was_folded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 a norm's new weight is rounded; the scale is what that leaves, so that the function stays."""
    folder = make_checkpoint("llama_tied", tmp_path / "model", outliers=True, dtype=torch.bfloat16)
    model, _, applied = folded_model(folder, "smoothquant", monkeypatch)
    assert applied
    check_logits(folder, model)


def check_logits(folder: Path, model: torch.nn.Module) -> None:
    """The model gives the logits of the one in `folder`."""
    exact = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(tokens())
    with torch.no_grad():
        expected, found = exact(ids).logits, model(ids).logits
    assert (found - expected).norm() <= 1e-4 * expected.norm()
