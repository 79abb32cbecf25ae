"""Folders for transformers and for vLLM: equal weights, and a named problem for what either cannot take."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zeropoint import artifact, exporters
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UnsupportedError
from zeropoint.planning import uniform_plan
from zeropoint.planning.uniform import plan_nbytes
from zeropoint.quantization import quantize_checkpoint
from zeropoint.values.plan import Plan
from zeropoint.values.scheme import parse

Tiny = Callable[[str], Path]


def quantized(source: Path, out: Path, scheme: str, **changes: str) -> artifact.Artifact:
    """An artifact with its embedding kept, and with other formats for the weights that contain a word."""
    checkpoint = open_checkpoint(source)
    choices = dict(uniform_plan(checkpoint, scheme, embedding="keep", lm_head="keep").choices)
    for word, other in changes.items():
        named = {name: choice for name, choice in choices.items() if word in name}
        choices |= {name: replace(choice, scheme=parse(other)) for name, choice in named.items()}
    quantize_checkpoint(checkpoint, out, plan=Plan(choices, plan_nbytes(checkpoint, choices)))
    return artifact.open(out)


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # compressed-tensors and pydantic, about themselves
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        found: torch.Tensor = model(torch.arange(40)[None]).logits
    return found


@pytest.mark.parametrize("target", ["transformers", "vllm"])
@pytest.mark.parametrize("scheme", ["int8", "int8:channel:sym:bf16:a8token", "int4", "int4:g64:sym:bf16"])
def test_the_folder_computes_what_the_artifact_computes(
    target: str, scheme: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    # g64 would leave the MLP's rows of 96 with a short group
    source = quantized(tiny_checkpoint("llama_untied"), tmp_path / "a", scheme, down_proj="int4:g32:sym:bf16")
    (tmp_path / "a/.zeropoint-packed-0.0").write_bytes(b"a cache of our engine")
    made = exporters.export(source, target, tmp_path / "out")
    assert made.verified is not None
    assert not {"zeropoint.json", ".zeropoint-packed-0.0"} & {
        file.name for file in (tmp_path / "out").iterdir()
    }
    assert (tmp_path / "out/tokenizer.json").exists()
    torch.testing.assert_close(logits(tmp_path / "out"), logits(tmp_path / "a"), rtol=0, atol=0)


def test_weight_only_8_bit_codes_are_packed_for_vllm(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    exporters.export(
        quantized(tiny_checkpoint("llama_untied"), tmp_path / "a", "int8"), "vllm", tmp_path / "out"
    )
    section = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]
    assert section["format"] == "pack-quantized"
    assert {group["format"] for group in section["config_groups"].values()} == {"pack-quantized"}


@pytest.mark.parametrize(
    ("scheme", "changes", "why"),
    [
        ("int8", {"q_proj": "int4:g32:sym:bf16:a16token"}, "q_proj, k_proj, v_proj as one"),
        ("int8", {"gate_proj": "int8:g32:sym:bf16:a16token"}, "gate_proj, up_proj as one"),
        ("int8:channel:sym:bf16:a8g32", {}, "per token, not per group"),
        ("int4:g16:sym:bf16", {}, "no groups of 16"),
        ("int3:g32:sym:bf16", {}, "no kernel for 3-bit"),
        ("int8:tensor:sym:bf16", {}, "one scale per tensor"),
        ("int4:g64:sym:bf16", {"down_proj": "int4:g64:sym:bf16"}, "groups of a row to be whole"),
    ],
)
def test_what_vllm_cannot_take_is_named(
    scheme: str, changes: dict[str, str], why: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    source = quantized(tiny_checkpoint("llama_untied"), tmp_path / "a", scheme, **changes)
    assert any(why in problem for problem in exporters.load("vllm").problems(source))
    with pytest.raises(UnsupportedError, match="vllm"):
        exporters.export(source, "vllm", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_quantized_embeddings_are_named(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / "a", format="int8")
    problems = exporters.load("vllm").problems(artifact.open(tmp_path / "a"))
    assert len(problems) == 1
    assert "--embedding keep" in problems[0]


def test_what_transformers_cannot_take_is_named(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    problems: Any = exporters.load("transformers").problems
    quantize_checkpoint(tiny_checkpoint("gpt2"), tmp_path / "a", format="int8")
    assert "Conv1D" in problems(artifact.open(tmp_path / "a"))[0]
