"""`quantize --for`: a plan for a target can be exported to it; what the target does not support is refused first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support import tiny
from zeropoint import api, artifact, exporters
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.cli.main import main
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.quantization.for_target import outline_of
from zeropoint.quantization.request import Request
from zeropoint.values.plan import Plan

Tiny = Callable[[str], Path]

#: Every format of every target, by its short name.
FORMATS = [(target, name) for target in exporters.names() for name in exporters.load(target).formats({})]

#: Models that a target does not support in any format.
REFUSED = {
    ("gguf", "opt"), ("gguf", "mixtral"), ("gguf", "gemma3_text"), ("onnx", "mixtral"), ("transformers", "gpt2"),
    ("transformers", "mixtral"), ("vllm", "gpt2"), ("vllm", "mixtral"),
}  # fmt: skip


@pytest.fixture(scope="module")
def with_merges(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a function: `with_merges("gpt2")` returns a bfloat16 checkpoint; its tokenizer has a merge, for GGUF."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.make_checkpoint(
                kind, tmp_path_factory.mktemp("for") / kind, dtype=torch.bfloat16
            )
            tiny.write_tokenizer(made[kind], merges=[("t", "h")])
        return made[kind]

    return get


def plan_for(target: str, checkpoint: Checkpoint, **asked: str) -> Plan:
    return Request(target=exporters.quantize_target(target), **asked).resolve(checkpoint)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize(("target", "name"), FORMATS)
def test_the_artifact_of_a_plan_for_a_target_has_no_problems_for_it(
    target: str, name: str, with_merges: Tiny, tmp_path: Path
) -> None:
    api.quantize(with_merges("llama_tied"), tmp_path / "a", format=name, target=target)
    made = artifact.open(tmp_path / "a")
    assert exporters.load(target).problems(made) == []
    assert any(choice.scheme for choice in made.plan.choices.values())
    assert made.shapes == {weight: value.shape for weight, value in made.stream()}
    if name == "int4":
        assert exporters.export(made, target, tmp_path / "out").verified is not None


@pytest.mark.parametrize("kind", ["llama_untied", "gpt2", "qwen2", "gemma3_text", "phi3", "opt", "mixtral"])
@pytest.mark.parametrize("target", exporters.names())
def test_each_family_has_a_plan_without_problems_or_a_named_one(
    target: str, kind: str, with_merges: Tiny
) -> None:
    checkpoint = open_checkpoint(with_merges(kind))
    if (target, kind) in REFUSED:
        with pytest.raises(UnsupportedError, match=f"cannot be quantized for {target}: "):
            plan_for(target, checkpoint)
        return
    plan = plan_for(target, checkpoint)
    assert exporters.load(target).problems(outline_of(checkpoint, plan)) == []


def test_the_default_format_is_the_targets_first(with_merges: Tiny) -> None:
    checkpoint = open_checkpoint(with_merges("llama_untied"))
    for target in exporters.names():
        first = next(iter(exporters.load(target).formats({})))
        assert plan_for(target, checkpoint) == plan_for(target, checkpoint, format=first)
    runtime, target = (plan_for(name, checkpoint).choices for name in ("llama.cpp", "gguf"))
    assert {n: choice.scheme for n, choice in runtime.items()} == {n: c.scheme for n, c in target.items()}


def test_groups_are_those_of_the_target(with_merges: Tiny) -> None:
    """Groups of 64 do not divide rows of 96 weights; 48 is the nearest size that does, but vLLM supports only 32."""
    checkpoint = open_checkpoint(with_merges("llama_untied"))
    choices = plan_for("vllm", checkpoint, format="int4:g64:sym:bf16").choices
    choice = choices["model.layers.0.mlp.down_proj.weight"]
    assert str(choice.scheme) == "int4:g32:sym:bf16"
    assert "do not divide 96" in choice.reason
    assert str(choices["model.layers.0.mlp.up_proj.weight"].scheme) == "int4:g64:sym:bf16"


def test_a_target_keeps_what_it_does_not_take(with_merges: Tiny) -> None:
    choices = plan_for("vllm", open_checkpoint(with_merges("llama_untied"))).choices
    assert choices["lm_head.weight"].scheme is None
    assert "kept for vllm" in choices["model.embed_tokens.weight"].reason
    scaled = plan_for("transformers", open_checkpoint(with_merges("gemma3_text"))).choices
    assert "kept for transformers: " in scaled["model.embed_tokens.weight"].reason


def test_scales_for_vllm_have_the_models_own_type(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny.make_checkpoint("llama_tied", tmp_path, dtype=torch.float16))
    schemes = {choice.scheme for choice in plan_for("vllm", checkpoint).choices.values()}
    assert {scheme.scale_dtype for scheme in schemes if scheme} == {"fp16"}


@pytest.mark.parametrize(
    ("target", "asked", "why"),
    [
        ("vllm", {"format": "int3"}, "no kernel for 3-bit.*it takes symmetric 8-bit"),
        ("vllm", {"format": "int4:g16:sym:bf16"}, "no groups of 16"),
        ("vllm", {"format": "int4:g32:sym:fp32"}, "would round fp32 scales"),
        ("vllm", {"embedding": "int8"}, "embeddings unquantized"),
        ("vllm", {"keep": ["*q_proj*"]}, "q_proj, k_proj, v_proj as one"),
        ("llama.cpp", {"format": "int8:channel:sym:bf16"}, "bf16 scales may be no FP16 numbers.*fp16 scales"),
        ("transformers", {"format": "int4:g32:asym:bf16"}, "packed zero points"),
        ("onnx", {"format": "int4:g8:sym:bf16"}, "groups of 8"),
    ],
)
def test_what_a_target_does_not_take_is_named_before_any_work(
    target: str, asked: dict[str, str], why: str, with_merges: Tiny, tmp_path: Path
) -> None:
    checkpoint = open_checkpoint(with_merges("llama_untied"))
    with pytest.raises(UnsupportedError, match=why):
        plan_for(target, checkpoint, **asked)


def test_a_given_plan_is_checked(with_merges: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(with_merges("llama_untied"))
    plan = plan_for("transformers", checkpoint)
    with pytest.raises(UnsupportedError, match="embeddings unquantized"):
        Request(plan=plan, target=exporters.quantize_target("vllm")).resolve(checkpoint)
    good = plan_for("vllm", checkpoint)
    assert Request(plan=good, target=exporters.quantize_target("vllm")).resolve(checkpoint)[0] == good


def test_the_command(with_merges: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["quantize", str(with_merges("llama_tied")), "-o", str(tmp_path / "out"), "--for"]
    assert main([*command, "vllm", "--format", "int5"]) == 2
    assert "cannot be quantized for vllm: vLLM has no kernel for 5-bit" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "llama.cpp"]) == 0
    assert f"next: zeropoint export {tmp_path / 'out'} --to gguf" in capsys.readouterr().out
    with pytest.raises(UsageError, match="no runtime 'sglang'"):
        exporters.quantize_target("sglang")
