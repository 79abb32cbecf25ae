"""Block by block: the inputs are the quantized model's own, experts and Conv1D included, and what is not observed is
said."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import ARCHITECTURES
from zeropoint import algorithms, artifact, quantize
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UsageError
from zeropoint.planning import uniform_plan
from zeropoint.quantization import WeightDone, stream
from zeropoint.quantization import calibrated_blocks as module
from zeropoint.quantization.block_runner import BlockRunner
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.values.plan import Choice
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import parse
from zeropoint.values.stats import LayerStats

Tiny = Callable[[str], Path]


def random_tokens(windows: int = 6, length: int = 64, top: int = 256) -> np.ndarray:
    return np.random.default_rng(0).integers(0, top, (windows, length))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_blocks_one_by_one_are_the_model(
    name: str, tiny_checkpoint: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "zeropoint.quantization.block_runner.BATCH_TOKENS", 4 * 64
    )  # a batch of four, one of two
    folder, ids = tiny_checkpoint(name), torch.from_numpy(random_tokens())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    filled = FilledModel(open_checkpoint(folder))
    runner = BlockRunner(filled, ids)
    last: list[torch.Tensor] = []
    block = model.get_submodule(filled.blocks[-1])
    block.register_forward_hook(lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(ids)
    filled.fill(filled.outside())
    hidden = runner.start()
    assert [len(batch) for batch in hidden] == [4, 2]
    for number in range(len(filled.blocks)):
        with runner.block(number) as running:
            hidden = [running.run(batch) for batch in hidden]
    torch.testing.assert_close(torch.cat(hidden), last[0], rtol=1e-4, atol=1e-4)


#: What goes through any model; a rotation refuses some (test_rotating.py), `exact` all that were not trained on a grid.
ANY = [
    *(set(algorithms.names()) - {*algorithms.names("rotate"), "exact"}),
    "awq+gptq",
    "gptq+rounding+distill",
]


@pytest.mark.parametrize(
    ("name", "algorithm"),
    [
        *product(["llama_tied", "gpt2", "bloom", "mixtral", "qwen2_moe"], sorted(ANY)),
        *product(["mixtral", "qwen2_moe"], ["rotation", "rotation+awq+gptq"]),
    ],
)
def test_every_algorithm_goes_through(name: str, algorithm: str, tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(name))
    plan = uniform_plan(checkpoint, "int4", algorithm=algorithm)
    steps: list[WeightDone] = []
    tokens = random_tokens()
    first = dict(stream(checkpoint, plan, tokens=tokens, progress=steps.append))
    assert list(first) == list(plan.choices)
    assert [
        s.warning for s in steps if s.warning and not re.search("nothing (better|was folded)", s.warning)
    ] == []
    for key, weight in stream(checkpoint, plan, tokens=tokens):  # same seed, same bytes
        if isinstance(weight, QuantizedTensor):
            np.testing.assert_array_equal(weight.codes, first[key].codes)
            np.testing.assert_array_equal(weight.scale, first[key].scale)


def test_inputs_are_those_of_the_quantized_model(
    tiny_checkpoint: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statistics of the last layer equal a plain forward pass of the model with all weights before it replaced."""
    folder, name = tiny_checkpoint("llama_tied"), "model.layers.1.mlp.down_proj.weight"
    checkpoint = open_checkpoint(folder)
    plan = uniform_plan(checkpoint, "int4", algorithm="gptq")
    tokens = random_tokens()
    seen: dict[str, LayerStats | None] = {}
    original = module.quantize_views

    def spy(views, choice, stats):  # type: ignore[no-untyped-def]
        seen.update({view.name: stats for view in views})
        return original(views, choice, stats)

    monkeypatch.setattr(module, "quantize_views", spy)
    made = dict(stream(checkpoint, plan, tokens=tokens))
    model, exact = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval() for _ in range(2)
    )
    inputs: list[torch.Tensor] = []
    for each in (model, exact):
        each.get_submodule(name.removesuffix(".weight")).register_forward_pre_hook(
            lambda _m, given: inputs.append(given[0].flatten(0, 1))
        )
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for key, weight in made.items():
            if isinstance(weight, QuantizedTensor) and key != name:
                parameters[key].copy_(torch.from_numpy(weight.dequantize()))
        model(torch.from_numpy(tokens))
        exact(torch.from_numpy(tokens))
    x, y = inputs
    stats = seen[name]
    assert stats is not None
    assert stats.hessian is not None
    assert stats.drift is not None
    assert stats.count == tokens.size
    scale = float((x.T @ x).diagonal().max())
    np.testing.assert_allclose(stats.hessian, (x.T @ x).numpy(), atol=0.01 * scale)
    np.testing.assert_allclose(stats.drift, ((y - x).T @ x).numpy(), atol=0.01 * scale)


def test_layers_of_one_input_and_one_choice_are_quantized_as_one(
    tiny_checkpoint: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    plan = uniform_plan(checkpoint, "int4", algorithm="gptq")
    key = "model.layers.0.self_attn.k_proj.weight"
    other = uniform_plan(checkpoint, "int8", algorithm="gptq").choices[key]
    plan = dataclasses.replace(plan, choices={**plan.choices, key: other})
    groups: list[list[str]] = []
    original = module.quantize_views

    def spy(views, choice, stats):  # type: ignore[no-untyped-def]
        groups.append([view.module.rpartition(".")[2] for view in views])
        return original(views, choice, stats)

    monkeypatch.setattr(module, "quantize_views", spy)
    made = dict(stream(checkpoint, plan, tokens=random_tokens()))
    assert groups[:5] == [
        ["q_proj", "v_proj"],
        ["k_proj"],
        ["o_proj"],
        ["gate_proj", "up_proj"],
        ["down_proj"],
    ]
    assert groups[5] == ["q_proj", "k_proj", "v_proj"]
    assert made[key].scheme == other.scheme  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("algorithm", "words"),
    [
        ("gptq", "rounded by rtn instead"),
        ("rtn", "with equal importance for all its inputs"),
        ("awq", "with equal importance for all its inputs"),
        ("smoothquant+gptq", "rounded by rtn instead"),
    ],
)
def test_an_expert_that_no_token_reaches_is_said(
    algorithm: str, words: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    folder = tiny_checkpoint("mixtral")
    text = tmp_path / "text.txt"
    text.write_text("a" * 16)  # the same token everywhere goes to the same two of four experts
    summary = quantize(
        folder, tmp_path / "out", format="int4", algorithm=algorithm, calibration=text, calibration_tokens=16
    )
    cold = [line for line in summary.warnings if "no calibration token" in line]
    assert len(cold) == 2 * 2 * 2  # two experts of two weights in two blocks
    assert all(".experts." in line and words in line for line in cold)
    card = artifact.open(tmp_path / "out").card
    assert set(cold) <= set(card["notes"])
    assert card["calibration"]["source"] == "text.txt"


def test_no_change_against_rtn_is_said(tiny_checkpoint: Tiny) -> None:
    """Uncorrelated inputs give GPTQ nothing to make up with."""
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    view = next(view for view in checkpoint.views()[0] if view.name.endswith("up_proj.weight"))
    sizes = np.linspace(1, 2, view.shape[1], dtype=np.float32)
    alike = LayerStats(sizes, 100, np.diag(sizes))
    for choice, stats, warns in (
        (Choice(parse("int4"), "gptq"), alike, True),
        (Choice(parse("int8"), "gptq"), alike, True),
        (Choice(parse("int4"), "gptq"), LayerStats(sizes, 100, np.diag(sizes) + 0.5), False),
        (Choice(parse("int4"), "rtn"), alike, False),
        (Choice(parse("int4"), "hqq"), alike, False),
    ):
        (made,) = module.quantize_views([view], choice, stats)
        assert ("the same codes and scales as rtn" in made.warning) == warns


def test_inputs_that_could_not_be_measured_are_said(
    tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zeropoint.quantization.streaming.input_moments", lambda *_, **__: {})
    summary = quantize(tiny_checkpoint("mixtral"), tmp_path / "out", format="int4")
    assert (
        len(summary.warnings) == 2 * 4
    )  # of each block, the attention: experts are never measured without text
    assert all(
        "with equal importance for all its inputs: their sizes could not be measured" in line
        for line in summary.warnings
    )
    assert set(summary.warnings) <= set(artifact.open(tmp_path / "out").card["notes"])


def test_an_algorithm_that_needs_text_says_so(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    with pytest.raises(UsageError, match="calibration tokens"):
        list(stream(checkpoint, uniform_plan(checkpoint, "int4", algorithm="gptq")))


def test_the_command_observes_the_text(
    tiny_checkpoint: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from zeropoint.cli.main import main

    out, report = tmp_path / "out", tmp_path / "report.json"
    arguments = [
        "quantize",
        str(tiny_checkpoint("gpt2")),
        "-o",
        str(out),
        "--format",
        "int4",
        "--algorithm",
        "gptq",
    ]
    assert main([*arguments, "--calibration-tokens", "512", "--json", str(report)]) == 0
    assert "calibrated on 512 tokens of built-in sample" in capsys.readouterr().out
    data = json.loads(report.read_text())
    assert data["calibration"] == artifact.open(out).card["calibration"]
    assert (data["calibration"]["windows"], data["calibration"]["length"]) == (4, 128)
    assert data["warnings"] == []


def test_rtn_weighs_by_the_text_it_is_given(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tiny_checkpoint("gpt2")
    plain, told = (
        quantize(folder, tmp_path / name, format="int4", calibration_tokens=tokens)
        for name, tokens in (("plain", None), ("told", 512))
    )
    assert plain.calibration is None
    assert told.calibration is not None
    assert told.layer_errors != plain.layer_errors
