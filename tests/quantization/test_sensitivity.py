"""The predicted divergence is the measured one, groups are found by what they read, and a planted layer is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import make_checkpoint
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import SchemeError, UsageError
from zeropoint.quantization.sensitivity import measure, sensitivity_key
from zeropoint.quantization.sensitivity.errors import fake_quantize
from zeropoint.values.scheme import Activation
from zeropoint.values.sensitivity import Sensitivity

Tiny = Callable[[str], Path]
TOKENS = np.random.default_rng(0).integers(0, 256, (8, 64))


def measured(folder: Path, formats: tuple[str, ...] = ("int4",), swaps: int = 99) -> Sensitivity:
    return measure(open_checkpoint(folder), TOKENS, formats, swaps=swaps)


@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "phi", "qwen2_moe"])
def test_prediction_is_what_is_measured(name: str, tiny_checkpoint: Tiny) -> None:
    found = measured(tiny_checkpoint(name))
    assert not found.unreached
    assert {w for g in found.groups for w in g.weights} == {
        view.name for view in open_checkpoint(tiny_checkpoint(name)).views()[0]
    }
    assert found.agreement["fisher ~ measured, int4"] > 0.7
    total = sum(cost.fisher.value for cost in found.costs if cost.measured)
    true = sum(cost.measured.value for cost in found.costs if cost.measured)
    assert true / 2 < total < 2 * true  # to second order, and on other windows


def test_groups_read_the_same_input(tiny_checkpoint: Tiny) -> None:
    groups = {group.name: group for group in measured(tiny_checkpoint("llama_tied"), swaps=0).groups}
    assert groups["model.layers.1.self_attn.q_proj+k_proj+v_proj"].block == 1
    assert groups["model.layers.0.mlp.gate_proj+up_proj"].kind == "gate_proj+up_proj"
    assert groups["model.embed_tokens"].block is None


def test_experts_of_a_stack_are_one_group(tiny_checkpoint: Tiny) -> None:
    groups = {group.name: group for group in measured(tiny_checkpoint("mixtral"), swaps=0).groups}
    assert len(groups["model.layers.0.mlp.experts.down_proj"].weights) == 4


def test_the_planted_layer_is_the_most_fragile(tmp_path: Path) -> None:
    folder = make_checkpoint("llama_untied", tmp_path / "m", layers=4)
    before = measured(folder, ("int4:channel:sym:bf16",)).fragile("int4:channel:sym:bf16")[0].group
    file = folder / "model.safetensors"
    weights = load_file(file)
    up, down = (weights[f"model.layers.2.mlp.{part}_proj.weight"] for part in ("up", "down"))
    scale = torch.ones(up.shape[0])
    scale[[3, 40]] = 400.0  # down_proj's columns grow, up_proj's rows shrink: the same function
    weights["model.layers.2.mlp.up_proj.weight"] = up / scale[:, None]
    weights["model.layers.2.mlp.down_proj.weight"] = (down * scale).contiguous()
    save_file(weights, file, metadata={"format": "pt"})
    planted = "model.layers.2.mlp.down_proj"
    assert before != planted
    found = measured(folder, ("int4:channel:sym:bf16",))
    inside = [cost for cost in found.fragile("int4:channel:sym:bf16") if "layers" in cost.group]
    assert inside[0].group == planted
    assert max((c for c in inside if c.measured), key=lambda c: c.measured.value).group == planted


def test_outlier_channels_show_in_the_inputs(tmp_path: Path) -> None:
    folder = make_checkpoint("llama_untied", tmp_path / "m")
    file = folder / "model.safetensors"
    weights = load_file(file)
    weights["model.layers.1.mlp.up_proj.weight"][7] *= 300
    weights["model.layers.1.mlp.down_proj.weight"][:, 7] /= 300
    save_file(weights, file, metadata={"format": "pt"})
    found = measured(folder, ("a8token",), swaps=0)
    worst = max(found.inputs, key=lambda shape: shape.max_ratio)
    assert (worst.group, worst.worst_channel) == ("model.layers.1.mlp.down_proj", 7)
    assert worst.token_kurtosis > 50


def test_same_seed_same_table_and_key(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    assert measured(tiny_checkpoint("llama_tied"), swaps=2) == measured(
        tiny_checkpoint("llama_tied"), swaps=2
    )
    keys = {
        sensitivity_key(checkpoint, tokens, formats, swaps=swaps, seed=0)
        for tokens in (TOKENS, TOKENS[:4])
        for formats in (["int4"], ["int8"])
        for swaps in (0, 1)
    }
    assert len(keys) == 8


def test_bad_formats_are_refused(tiny_checkpoint: Tiny) -> None:
    with pytest.raises(UsageError, match="each format once"):
        measured(tiny_checkpoint("llama_tied"), ("int4", "int4"))
    with pytest.raises(SchemeError, match="is a float format"):
        measured(tiny_checkpoint("llama_tied"), ("fp16",))


def test_fake_quantization_is_per_token_or_group() -> None:
    given = torch.tensor([[1.0, 127.0, 0.4, 254.0]])
    assert fake_quantize(given, Activation(8)).tolist() == [[0.0, 128.0, 0.0, 254.0]]
    wide = torch.linspace(-1, 1, 32)[None]
    assert (fake_quantize(wide, Activation(8, 8)) - wide).abs().max() < 1 / 254
