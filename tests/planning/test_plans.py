"""Plans name every weight once, say why, and promise exact bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod
from pathlib import Path

import pytest

from tests.support.tiny import ARCHITECTURES
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import SchemeError, UsageError
from zeropoint.planning import coverage, quantized_fraction, require_coverage, uniform_plan
from zeropoint.planning.uniform import fit_groups
from zeropoint.values.scheme import parse

Tiny = Callable[[str], Path]
FORMATS = ["int8", "int4", "int4:g32:asym:bf16:a8g32", "fp16", "int3:tensor:asym", "int4:g40"]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_listed(name: str, format: str, tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(name))
    plan = uniform_plan(checkpoint, format)
    rows = coverage(checkpoint, plan)
    infos = checkpoint.parameters()
    own = [row for row in rows if row.decision != "tied"]
    assert sum(prod(row.shape) for row in own) == sum(i.numel for i in infos if i.tied_to is None)
    assert {row.name for row in rows if row.decision == "tied"} == {i.name for i in infos if i.tied_to}
    assert sum(row.bytes for row in rows) == plan.nbytes
    assert all(row.reason for row in rows)
    if format != "fp16":
        wanted = 0.85 if name in ("opt", "gpt2") else 0.98
        assert quantized_fraction(rows) > wanted


def test_embedding_and_head(tiny_checkpoint: Tiny) -> None:
    tied = uniform_plan(open_checkpoint(tiny_checkpoint("llama_tied")), "int4").choices
    assert str(tied["model.embed_tokens.weight"].scheme) == "int8:channel:sym:bf16:a16token"
    assert "lm_head.weight" not in tied
    checkpoint = open_checkpoint(tiny_checkpoint("llama_untied"))
    untied = uniform_plan(checkpoint, "int4").choices
    assert str(untied["model.embed_tokens.weight"].scheme) == "int8:channel:sym:bf16"
    assert str(untied["lm_head.weight"].scheme) == "int8:channel:sym:bf16:a16token"
    asked = uniform_plan(checkpoint, "int4", embedding="int4:g32", lm_head="keep").choices
    assert str(asked["model.embed_tokens.weight"].scheme) == "int4:g32:sym:bf16"
    assert asked["lm_head.weight"].scheme is None


def test_a_scheme_that_does_not_fit_is_replaced_out_loud() -> None:
    fitted, note = fit_groups(parse("int4:g32:a8g64"), 96)
    assert (fitted.group_size, str(fitted.activation)) == (32, "a8g48")
    assert "do not divide 96" in note
    fitted, note = fit_groups(parse("int4:g64:a8g64"), 100)
    assert (fitted.granularity, str(fitted.activation)) == ("channel", "a8token")
    assert "per channel" in note
    assert "one scale per token" in note
    assert fit_groups(parse("int4:g32:a8g32"), 64) == (parse("int4:g32:a8g32"), "")


def test_keep_patterns(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("mixtral"))
    plan = uniform_plan(
        checkpoint, "int8", keep=("*.1.mlp.experts.down_proj.2", "model.layers.0.self_attn.*")
    )
    # one expert kept means the whole stack is
    assert plan.choices["model.layers.1.mlp.experts.down_proj"].scheme is None
    assert "model.layers.1.mlp.experts.down_proj.0" not in plan.choices
    assert plan.choices["model.layers.0.self_attn.q_proj.weight"].scheme is None
    assert plan.choices["model.layers.1.self_attn.q_proj.weight"].scheme is not None
    assert sum(row.bytes for row in coverage(checkpoint, plan)) == plan.nbytes
    with pytest.raises(UsageError, match="matches no parameter"):
        uniform_plan(checkpoint, "int8", keep=("*.q_porj.*",))


@pytest.mark.parametrize("format", ["int8", "fp16"])
def test_a_keep_pattern_may_name_a_module_or_a_view(format: str, tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("opt"))
    patterns = ("model.decoder.layers.0.fc1", "model.decoder.final_layer_norm")
    choices = uniform_plan(checkpoint, format, keep=patterns).choices
    kept = {name for name, choice in choices.items() if choice.scheme is None}
    assert {f"{pattern}.{leaf}" for pattern in patterns for leaf in ("weight", "bias")} <= kept
    assert choices["model.decoder.layers.0.fc1.weight"].reason == "kept as asked"
    assert "model.decoder.layers.1.fc1.weight" not in kept
    mixture = open_checkpoint(tiny_checkpoint("mixtral"))
    view = next(view for view in mixture.views()[0] if view.kind == "expert")
    stack = uniform_plan(mixture, format, keep=(view.name,)).choices
    assert stack[view.parameter].reason == "kept as asked"  # one expert's pattern keeps the stack


def test_float_plans_cast_every_float(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("gpt2"))
    plan = uniform_plan(checkpoint, "bf16")
    assert plan.nbytes * 2 == checkpoint.source_nbytes()
    assert all(choice.scheme is None for choice in uniform_plan(checkpoint, "fp32").choices.values())


def test_bad_requests(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    for call, error in (
        (lambda: uniform_plan(checkpoint, "int99"), SchemeError),
        (lambda: uniform_plan(checkpoint, "int8", algorithm="magic"), UsageError),
        (lambda: uniform_plan(checkpoint, "int8", options={"x": 1}), UsageError),
        (lambda: uniform_plan(checkpoint, "fp16", embedding="int8"), UsageError),
    ):
        with pytest.raises(error):
            call()


def test_coverage_refuses_another_models_plan(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    plan = uniform_plan(checkpoint, "int8")
    choices = dict(plan.choices)
    removed = choices.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UsageError, match="does not say what happens to model"):
        coverage(checkpoint, replace(plan, choices=choices))
    with pytest.raises(UsageError, match=r"names model\.layers\.9"):
        coverage(checkpoint, replace(plan, choices={**plan.choices, "model.layers.9.w": removed}))


def test_require_coverage_names_what_was_kept(tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("gpt2"))
    rows = coverage(checkpoint, uniform_plan(checkpoint, "int8"))
    require_coverage(rows, 0.5)
    with pytest.raises(UsageError, match=r"wpe.*positions"):
        require_coverage(rows, 0.99)
