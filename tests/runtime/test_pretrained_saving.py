"""Saving the model of the one-line API: an artifact like the one that `quantize` writes, or a refusal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import zeropoint
from tests.runtime.pretrained import FAMILIES, TOKENS, Checkpoints, load, logits
from zeropoint import AutoModelForCausalLM
from zeropoint.errors import ArtifactError, UsageError


@pytest.fixture
def model(tiny_checkpoint: Checkpoints) -> Any:
    return load(tiny_checkpoint("llama_tied"))


@pytest.mark.parametrize(
    "format", ["int8", "int4", "int3:g32:asym:fp16:a8token", "int5", "fp16", "int8:tensor:asym"]
)
@pytest.mark.parametrize("name", ["llama_tied", "gpt2"])
def test_saving_writes_what_quantizing_writes(
    name: str, format: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = tiny_checkpoint(name)
    load(path, format).save_pretrained(tmp_path / "saved")
    zeropoint.quantize(path, tmp_path / "wanted", format=format)
    wanted = {file.name: file.read_bytes() for file in (tmp_path / "wanted").iterdir()}
    saved = {file.name: file.read_bytes() for file in (tmp_path / "saved").iterdir()}
    assert _card(saved.pop("zeropoint.json")) == _card(wanted.pop("zeropoint.json"))
    assert saved == wanted


def _card(text: bytes) -> dict[str, Any]:
    """Return a card without its machine, which only `quantize` names, and so without its own digest."""
    card: dict[str, Any] = json.loads(text)
    return card | {"machine": None, "digests": card["digests"] | {"card": None}}


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_saved_loads_everywhere(name: str, tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = load(tiny_checkpoint(name))
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert np.array_equal(logits(model), logits(again))
    runner = zeropoint.load(tmp_path / "saved", threads=1)
    assert np.abs(runner.logits(TOKENS.numpy()) - logits(model)).max() < 0.05
    again.save_pretrained(tmp_path / "twice")
    for file in (tmp_path / "saved").iterdir():
        assert (tmp_path / "twice" / file.name).read_bytes() == file.read_bytes()


def test_kept_weights_in_16_bits_and_shards(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    from tests.support.tiny import make_checkpoint

    for name, keep in (("gpt2", "*c_fc*"), ("llama_untied", "*lm_head*"), ("mixtral", "*experts*")):
        path = make_checkpoint(name, tmp_path / name, dtype=torch.bfloat16)
        model = load(path, "int4", keep=[keep])
        model.save_pretrained(tmp_path / f"{name}-saved", max_shard_size="20KB")
        assert len(list((tmp_path / f"{name}-saved").glob("*.safetensors"))) > 2
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-saved")
        assert np.array_equal(logits(model), logits(again))


def test_the_verdict_goes_with_the_weights(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    from zeropoint.artifact import update_card

    zeropoint.quantize(tiny_checkpoint("llama_tied"), tmp_path / "a")
    update_card(tmp_path / "a", quality={"kl": 0.1}, verdict={"passed": True})
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b")
    model.model.norm.weight.data.mul_(1.7)
    model.save_pretrained(tmp_path / "c")
    cards = [json.loads((tmp_path / name / "zeropoint.json").read_text()) for name in "abc"]
    assert cards[0] == cards[1]
    assert cards[2]["verdict"] is cards[2]["quality"] is None


def test_changes_after_loading_are_saved(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    from tests.support.tiny import make_checkpoint

    for dtype in (torch.float32, torch.bfloat16):
        path = make_checkpoint("llama_tied", tmp_path / f"{dtype}", dtype=dtype)
        model = load(path)
        model.model.norm.weight.data.mul_(1.0123)
        model.generation_config.max_new_tokens = 3
        model.config.use_cache = False
        model.save_pretrained(tmp_path / f"{dtype}-saved")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / f"{dtype}-saved")
        assert np.array_equal(logits(model), logits(again))
        assert again.generation_config.max_new_tokens == 3
        assert again.config.use_cache is False
        zeropoint.load(tmp_path / f"{dtype}-saved", threads=1)


def test_saving_beside_a_tokenizer_and_over_an_artifact(
    model: Any, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint("llama_tied"))
    tokenizer.save_pretrained(out)
    (out / "README.md").write_text("mine")
    (out / "sub").mkdir()
    model.save_pretrained(out, max_shard_size=20_000)
    assert np.array_equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(model))
    other = load(tiny_checkpoint("llama_untied"), "int4")
    other.save_pretrained(str(out))
    tokenizer.save_pretrained(out)
    again = AutoModelForCausalLM.from_pretrained(out)
    assert np.array_equal(logits(again), logits(other))
    again.save_pretrained(out)  # onto itself
    assert np.array_equal(logits(AutoModelForCausalLM.from_pretrained(out)), logits(other))
    assert (out / "README.md").read_text() == "mine"
    assert (out / "sub").is_dir()
    assert not [file for file in out.iterdir() if file.name.startswith(".")]


def test_what_cannot_be_saved_is_refused_before_anything_is_written(
    model: Any, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    checkpoint = shutil.copytree(tiny_checkpoint("llama_untied"), tmp_path / "original")
    before = (checkpoint / "model.safetensors").read_bytes()
    (tmp_path / "file").write_text("")
    for folder in (checkpoint, tmp_path / "file"):
        with pytest.raises(UsageError):
            model.save_pretrained(folder)
    assert (checkpoint / "model.safetensors").read_bytes() == before
    for options in (
        {"state_dict": {}},
        {"variant": "fp16"},
        {"safe_serialization": False},
        {"push_to_hub": True},
        {"max_shard_size": "many"},
        {"sharded": True},
    ):
        with pytest.raises(UsageError, match=next(iter(options))):
            model.save_pretrained(tmp_path / "out", **options)
    model.save_pretrained(tmp_path / "out", is_main_process=False)
    assert not (tmp_path / "out").exists()


def _linear(model: Any) -> None:
    model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 96, bias=False)


def _head(model: Any) -> None:
    model.lm_head = torch.nn.Linear(64, 260, bias=False)


def _extra(model: Any) -> None:
    model.value_head = torch.nn.Linear(64, 1)


def _shorter(model: Any) -> None:
    model.model.layers = model.model.layers[:1]


def _nan(model: Any) -> None:
    model.model.norm.weight.data[3] = float("nan")


@pytest.mark.parametrize("change", [_linear, _head, _extra, _shorter, _nan])
def test_another_model_than_was_loaded_is_refused(change: Any, model: Any, tmp_path: Path) -> None:
    change(model)
    with pytest.raises(UsageError):
        model.save_pretrained(tmp_path / "out")
    if change is not _nan:
        with pytest.raises(UsageError):
            model.push_to_hub("a/b")
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_gone_is_refused(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    shutil.copytree(tiny_checkpoint("llama_tied"), tmp_path / "source")
    model = load(tmp_path / "source")
    shutil.rmtree(tmp_path / "source")
    with pytest.raises(ArtifactError, match="gone"):
        model.save_pretrained(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_push_to_hub_uploads_the_artifact(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from types import SimpleNamespace

    from transformers.utils import hub

    sent = tmp_path / "sent"
    api = SimpleNamespace(create_repo=lambda repo, **_: SimpleNamespace(repo_id=repo))
    card = SimpleNamespace(save=lambda path: Path(path).write_text("card"))
    monkeypatch.setattr(hub, "hf_api", lambda: api)
    monkeypatch.setattr(hub, "create_and_tag_model_card", lambda *_, **__: card)
    monkeypatch.setattr(
        type(model), "_upload_modified_files", lambda self, folder, *_, **__: shutil.copytree(folder, sent)
    )
    model.push_to_hub("me/tiny")
    assert np.array_equal(logits(AutoModelForCausalLM.from_pretrained(sent)), logits(model))


def test_an_unquantized_model_is_saved_by_transformers(tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama_tied"))
    model.save_pretrained(tmp_path / "plain")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert np.array_equal(logits(model), logits(again))
