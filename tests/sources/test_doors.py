"""Damaged and unusual checkpoints, through every door: transformers' float32 logits, or one refusal, never a guess.

Each case changes a sound tiny model. A case that is read names what transformers would load (by default the changed
folder itself); a case that is refused names the sentence, which must be the same at every door.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import zeropoint
from tests.sources.edits import (
    FILE,
    Edit,
    adapter,
    both,
    cast,
    config,
    emptied,
    head,
    nothing,
    peft_names,
    pickled,
    removed,
    renamed,
    set_value,
    sharded,
    tensors,
    text,
    third_block,
    truncated,
    with_,
    without,
)
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError, ZeropointError
from zeropoint.originals import open_original
from zeropoint.runtime import open_runner
from zeropoint.runtime.torch_engine.runner import build

Tiny = Callable[[str], Path]

IDS = np.random.default_rng(0).integers(0, 256, 12)
LAYER = "model.layers.0."


# -- doors: what a user may do with a folder ----------------------------------------------------------


def quantize(folder: Path, out: Path) -> np.ndarray:
    zeropoint.quantize(folder, out, format="fp16")
    return open_runner(out, threads=1).logits(IDS)


def quantize_for_torch(folder: Path, out: Path) -> np.ndarray:
    zeropoint.quantize(folder, out, format="fp16")
    return open_runner(out, threads=1, engine="universal").logits(IDS)


def reference_of_compare_and_check(folder: Path, _: Path) -> np.ndarray:
    return open_runner(folder, threads=1, engine="universal", dtype="float32").logits(IDS)


def bench_and_generate(folder: Path, _: Path) -> np.ndarray:
    return open_runner(folder, threads=1).logits(IDS)


def python_load(folder: Path, _: Path) -> np.ndarray:
    return zeropoint.load(folder, threads=1, engine="universal").logits(IDS)


def from_pretrained(folder: Path, _: Path) -> np.ndarray:
    with torch.inference_mode():
        model = zeropoint.AutoModelForCausalLM.from_pretrained(folder)
        return model(torch.tensor(IDS)[None]).logits[0].float().numpy()


def fit(folder: Path, _: Path) -> np.ndarray:
    with torch.inference_mode():
        return build(open_checkpoint(folder), "float32")(torch.tensor(IDS)[None]).logits[0].numpy()


def export_type(folder: Path, _: Path) -> np.ndarray:
    """The weights that are exported, in transformers' own model."""
    original = open_original(folder, tokens=16)
    checkpoint = original._checkpoint
    with torch.inference_mode():
        return build(checkpoint, "float32")(torch.tensor(IDS)[None]).logits[0].numpy()


DOORS = (
    quantize,
    quantize_for_torch,
    reference_of_compare_and_check,
    bench_and_generate,
    python_load,
    from_pretrained,
    fit,
    export_type,
)


# -- cases --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """`edit` changes a copy of the tiny model `base`. `refused`: a pattern of the one sentence. `said`: a pattern of
    what is logged on the way, "" for silence. `meant` makes the folder that transformers reads for the same numbers,
    where it does not read the changed one."""

    base: str
    edit: Edit
    refused: str | None = None
    said: str = ""
    meant: Edit | None = None


NORM, UP = "model.norm.weight", LAYER + "mlp.up_proj.weight"

CASES: dict[str, Case] = {
    # missing
    "no head": Case("llama_untied", without("lm_head"), r"lacks 1 tensors .*lm_head\.weight.*tie_word_embeddings"),
    "no matrix": Case("llama_untied", without("layers.1.mlp.up_proj"), r"lacks 1 tensors .*layers\.1\.mlp\.up_proj"),
    "no norm": Case("llama_tied", without("model.norm"), r"lacks 1 tensors .*model\.norm"),
    "no embedding": Case("llama_untied", without("embed_tokens"), r"lacks 1 tensors .*embed_tokens"),
    "no block": Case("qwen2", without("layers.1."), r"lacks 12 tensors .*layers\.1\..* and 8 more"),
    "a bias of three": Case("qwen2", without("layers.0.self_attn.k_proj.bias"), r"lacks 1 tensors .*k_proj\.bias"),
    "more blocks in the config": Case("llama_tied", config(num_hidden_layers=3), r"lacks 9 tensors .*layers\.2\."),
    "gpt2 without positions": Case("gpt2", without("wpe"), r"lacks 1 tensors .*wpe"),
    "no expert": Case("mixtral", without("experts.2."), r"experts\..*(shape|assembled)"),
    "bloom without a norm": Case("bloom", without("h.1.input_layernorm.bias"), r"lacks 1 tensors .*input_layernorm"),
    # unexpected
    "biases": Case(
        "llama_untied",
        with_(**{f"model__layers__0__self_attn__{n}_proj__bias": torch.ones(r) for n, r in (("q", 64), ("k", 32))}),
        said=r"holds 2 tensors .*k_proj\.bias, .*q_proj\.bias",
    ),
    "a further block": Case("llama_tied", tensors(third_block), said=r"holds 9 tensors .*layers\.2\..* and 5 more"),
    "a reward head": Case("llama_untied", with_(score__weight=torch.ones(1, 64)), said=r"holds 1 tensors .*score\.weight"),
    "a value head": Case(
        "llama_untied",
        with_(v_head__summary__weight=torch.ones(1, 64), v_head__summary__bias=torch.ones(1)),
        said=r"holds 2 tensors .*v_head\.summary",
    ),
    "computed tables": Case("llama_untied", with_(model__layers__0__self_attn__rotary_emb__inv_freq=torch.ones(8))),
    "unexpected FP8": Case(
        "llama_untied", with_(other__weight=torch.ones(8).to(torch.float8_e4m3fn)), said=r"holds 1 tensors .*other"
    ),
    "bloom with another table": Case("bloom", with_(transformer__extra=torch.ones(4)), said=r"holds 1 tensors .*extra"),
    # reward models
    "a reward model": Case(
        "llama_untied",
        both(without("lm_head"), with_(score__weight=torch.ones(1, 64)),
             config(architectures=["LlamaForSequenceClassification"])),
        r"lacks 1 tensors .*lm_head",
    ),
    "a tied reward model": Case(
        "llama_tied",
        both(with_(score__weight=torch.ones(1, 64)), config(architectures=["LlamaForSequenceClassification"])),
        said=r"holds 1 tensors .*score",
    ),
    # names
    "compiled": Case("llama_untied", renamed(lambda k: f"_orig_mod.{k}"), said="_orig_mod", meant=nothing),
    "parallel": Case("llama_tied", renamed(lambda k: f"module.{k}"), said=r"module\.", meant=nothing),
    "compiled in parallel": Case("gpt2", renamed(lambda k: f"module._orig_mod.{k}"), said="_orig_mod", meant=nothing),
    "compiled blocks": Case(
        "llama_untied",
        renamed(lambda k: re.sub(r"(layers\.\d+\.)", r"\1_orig_mod.", k)),
        said="_orig_mod",
        meant=nothing,
    ),
    "sharded by FSDP": Case(
        "qwen2",
        renamed(lambda k: "_fsdp_wrapped_module." + re.sub(r"(layers\.\d+\.)", r"\1_fsdp_wrapped_module.", k)),
        said="_fsdp_wrapped_module",
        meant=nothing,
    ),
    "merged by PEFT": Case("llama_untied", renamed(lambda k: f"base_model.model.{k}"), said="base_model", meant=nothing),
    "compiled experts": Case("mixtral", renamed(lambda k: f"_orig_mod.{k}"), said="_orig_mod", meant=nothing),
    "one prefix too many": Case("llama_untied", renamed(lambda k: f"model.{k}")),
    "base model's names": Case("llama_tied", renamed(lambda k: k.removeprefix("model."))),
    "GPT-2's published names": Case("gpt2", renamed(lambda k: k.removeprefix("transformer."))),
    "a strange prefix": Case("llama_untied", renamed(lambda k: f"student.{k}"), r"lacks 21 tensors .*embed_tokens"),
    "one name twice": Case("llama_untied", with_(norm__weight=torch.ones(64) * 2), r"norm\.weight twice with different"),
    "one name twice, wrapped": Case(
        "llama_untied", tensors(lambda t: t | {f"_orig_mod.{NORM}": t[NORM]}), r"norm\.weight twice"
    ),
    # adapters
    "an adapter beside": Case("llama_untied", adapter, said=r"adapter \(LORA, trained on x/y\).*left out", meant=nothing),
    "an adapter alone": Case(
        "llama_untied", both(adapter, removed("config.json", FILE)), r"adapter \(LORA.*no model.*merge_and_unload"
    ),
    "an adapter with a config": Case("llama_untied", both(adapter, removed(FILE)), r"adapter .*merge_and_unload"),
    "an adapter not merged": Case("llama_untied", renamed(peft_names), r"base_layer.*merge_and_unload"),
    # ties
    "tied, with a head": Case("llama_tied", with_(lm_head__weight=head())),
    "tied, with a head, Qwen 2": Case("yarn_rope", with_(lm_head__weight=head())),
    "tied, with a head, GPT-2": Case("gpt2", with_(lm_head__weight=head())),
    "tied, with a head, Gemma": Case("gemma", with_(lm_head__weight=head())),
    "tied, with a head, bloom": Case("bloom", with_(lm_head__weight=head())),
    "tied by default, with a head": Case(
        "gemma", both(with_(lm_head__weight=head()), config(drop=("tie_word_embeddings",)))
    ),
    "tied, with the same head": Case(
        "llama_tied", tensors(lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    ),
    "tied, with the head alone": Case(
        "llama_tied",
        renamed(lambda k: k.replace("model.embed_tokens", "lm_head")),
        meant=nothing,
    ),
    "tied, with a head of other rows": Case("llama_tied", with_(lm_head__weight=head(300)), r"\(300, 64\).*\(260, 64\)"),
    # shapes and types
    "another shape": Case("llama_untied", with_(model__norm__weight=torch.ones(32)), r"model\.norm.*\(32,\).*\(64,\)"),
    "transposed": Case("llama_untied", tensors(lambda t: t | {UP: t[UP].T}), r"up_proj.*\(64, 96\).*\(96, 64\)"),
    "another vocabulary": Case("llama_tied", config(vocab_size=300), r"embed_tokens.*\(260, 64\).*\(300, 64\)"),
    "NaN": Case("llama_untied", set_value(UP, float("nan")), r"up_proj\.weight holds 1 NaN.*\(0, 3\)"),
    "infinity in a norm": Case("llama_untied", set_value(NORM, float("inf")), r"norm\.weight holds 1 NaN.*\(3,\)"),
    "FP8": Case("llama_untied", cast("up_proj", torch.float8_e4m3fn), r"up_proj\.weight as F8_E4M3"),
    "codes": Case("llama_untied", cast("up_proj", torch.int8), r"up_proj\.weight as I8, and the model has floats"),
    "float64": Case("llama_untied", cast("proj", torch.float64)),
    "types mixed": Case("llama_untied", both(cast("norm", torch.float16), cast("mlp", torch.bfloat16))),
    # files
    "shards": Case("llama_untied", sharded),
    "an index left over": Case(
        "llama_untied", text(f"{FILE}.index.json", '{"weight_map": {"lm_head.weight": "gone.safetensors"}}')
    ),
    "a shard is missing": Case(
        "llama_untied", both(sharded, removed("model-00002-of-00002.safetensors")), r"lacks the shard model-00002"
    ),
    "shards without an index": Case(
        "llama_untied", both(sharded, removed(f"{FILE}.index.json")), r"holds model-00001.*missing index"
    ),
    "pickles": Case("llama_untied", pickled, r"pickled weights only \(pytorch_model\.bin\)"),
    "truncated": Case("llama_untied", truncated, r"truncated or not a safetensors file"),
    "no weights": Case("llama_untied", removed(FILE), r"has a config\.json but no weights"),
    "no config": Case("llama_untied", removed("config.json"), r"has no config\.json"),
    "config of noise": Case("llama_untied", text("config.json", "{"), r"config\.json is not valid JSON"),
    "empty": Case("llama_untied", emptied, r"is empty"),
}  # fmt: skip


def test_the_matrix_is_as_large_as_it_says() -> None:
    assert len(CASES) >= 60
    assert len(DOORS) == 8


@pytest.mark.parametrize("name", CASES)
def test_every_door(
    name: str, tiny_checkpoint: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    case = CASES[name]
    folder = copied(tiny_checkpoint(case.base), tmp_path / "model", case.edit)
    if case.refused is not None:
        for door, said in refusals(folder, tmp_path):
            assert re.search(case.refused, said), f"{door}: {said}"
        return
    meant = (
        folder if case.meant is None else copied(tiny_checkpoint(case.base), tmp_path / "meant", case.meant)
    )
    wanted = reference(meant)
    for door in DOORS:
        caplog.clear()
        with caplog.at_level(logging.WARNING, "zeropoint"):
            found = door(folder, tmp_path / door.__name__)
        assert kl(wanted, found) < 1e-4, door.__name__
        if door is not fit and door is not export_type and "quantize" not in door.__name__:
            check_said(case, caplog)
    notes = " ".join(open_checkpoint(folder).notes)
    assert bool(re.search(case.said, notes)) if case.said else not notes


def check_said(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    said = [record.getMessage() for record in caplog.records if "universal engine" not in record.getMessage()]
    said = [each for each in said if "in torch" not in each]
    assert re.search(case.said, " ".join(said)) if case.said else not said


def refusals(folder: Path, scratch: Path) -> Iterator[tuple[str, str]]:
    for door in DOORS:
        out = scratch / door.__name__
        with pytest.raises(ZeropointError) as refusal:
            door(folder, out)
        assert isinstance(refusal.value, CheckpointError), (door.__name__, refusal.value)
        assert not out.exists(), f"{door.__name__} left half an artifact"
        yield door.__name__, str(refusal.value)


def copied(folder: Path, to: Path, edit: Edit) -> Path:
    shutil.copytree(folder, to)
    edit(to)
    return to


def reference(folder: Path) -> np.ndarray:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return model(torch.tensor(IDS)[None]).logits[0].float().numpy()


def kl(wanted: np.ndarray, found: np.ndarray) -> float:
    assert found.shape == wanted.shape
    assert np.isfinite(found).all()
    p, q = (torch.log_softmax(torch.tensor(each, dtype=torch.float64), -1) for each in (wanted, found))
    return float((p.exp() * (p - q)).sum(-1).mean())
