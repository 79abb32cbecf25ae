"""A model by a hub name or as a GGUF file, wherever a folder is taken."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import zeropoint
from tests.support.hub import offline_hub
from tests.support.tiny import write_tokenizer
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError, UsageError
from zeropoint.evaluate.model_description import describe
from zeropoint.originals import open_original
from zeropoint.runtime import open_runner
from zeropoint.runtime.torch_engine.runner import load_checkpoint
from zeropoint.sources import locate, open_source
from zeropoint.sources.vocabulary import tokens_beyond

Tiny = Callable[[str], Path]

IDS = np.random.default_rng(1).integers(0, 256, 12)


@pytest.fixture
def hub(tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline cache that holds a/b, in `main` a tied model and in `other` an untied one."""
    revisions = {"main": tiny_checkpoint("llama_tied"), "other": tiny_checkpoint("llama_untied")}
    return offline_hub(tmp_path / "hub", revisions, monkeypatch)


@pytest.mark.parametrize(("revision", "kind"), [(None, "llama_tied"), ("other", "llama_untied")])
def test_a_hub_name_is_the_same_model_everywhere(
    revision: str | None, kind: str, hub: Path, tiny_checkpoint: Tiny
) -> None:
    expected = open_runner(tiny_checkpoint(kind), threads=1).logits(IDS)
    assert hub in locate("a/b", revision=revision).parents
    for engine in ("auto", "universal"):
        found = open_runner("a/b", threads=1, engine=engine, revision=revision).logits(IDS)
        assert np.allclose(found, expected, atol=0.02)
    with torch.inference_mode():
        model = load_checkpoint("a/b", "auto", revision=revision)
        assert np.allclose(model(torch.tensor(IDS)[None]).logits[0].numpy(), expected, atol=0.02)
    reference, other = describe("a/b", [str(tiny_checkpoint(kind))], revision=revision)
    assert (reference.name, reference.to_json()["path"]) == ("b", "a/b")
    assert Path(reference.path).is_dir()
    assert other.path == str(tiny_checkpoint(kind))
    assert open_checkpoint("a/b", revision=revision).name == "a/b"


def test_other_doors_take_a_hub_name(hub: Path, tmp_path: Path) -> None:
    zeropoint.quantize("a/b", tmp_path / "artifact", format="int8")
    assert open_original("a/b", tokens=16).name == "a/b"


def test_names_that_are_nothing(hub: Path) -> None:
    for name in ("a/missing", "./missing", "/missing", "missing.gguf", "x" * 300, "a/b/c"):
        with pytest.raises(CheckpointError, match=r"does not exist|could not be fetched"):
            locate(name)
    with pytest.raises(CheckpointError, match="could not be fetched"):
        locate("a/b", revision="nowhere")


def test_a_local_path_has_no_revision(tiny_checkpoint: Tiny) -> None:
    with pytest.raises(UsageError, match="no revision"):
        locate(tiny_checkpoint("llama_tied"), revision="main")


@pytest.mark.parametrize("format", ["fp16", "int8:g32:sym:fp16"])
def test_a_gguf_file_runs_on_its_own_numbers(format: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama_untied"), folder)
    write_tokenizer(folder, [("t", "h")])
    zeropoint.quantize(folder, tmp_path / "artifact", format=format)
    file = tmp_path / "x.gguf"
    zeropoint.export(tmp_path / "artifact", "gguf", file, verify=False)
    expected = open_runner(tmp_path / "artifact", threads=1)
    for options in ({}, {"engine": "native"}, {"engine": "universal", "dtype": "float32"}):
        runner = open_runner(file, threads=1, **options)
        assert np.allclose(runner.logits(IDS), expected.logits(IDS), atol=1e-3)
        assert runner.encode_prompt("the hat") == expected.encode_prompt("the hat")
    assert open_source(file).nbytes() == open_runner(file, threads=1).artifact_bytes
    assert describe(str(file), [str(tmp_path / "artifact")])[0].runtime == ""


def test_tokens_beyond_the_embedding_are_told(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama_tied"), folder)
    assert tokens_beyond(folder, 260) is None
    write_tokenizer(folder, [("t", "h"), ("th", "e")])
    assert "1 tokens beyond the 260 rows of the embedding, 'the' (id 260)" in str(tokens_beyond(folder, 260))
    made = zeropoint.quantize(folder, tmp_path / "artifact")
    assert "beyond the 260 rows" in made.warnings[0]
