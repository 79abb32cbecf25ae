"""ONNX folders say what the artifact says, and compute it: in onnxruntime, where it is installed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from zeropoint import artifact, exporters
from zeropoint.errors import ArtifactError, GateError, UnsupportedError
from zeropoint.kernels.divergence import divergence
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime import open_runner
from zeropoint.runtime.external.onnxruntime import OnnxEngine

pytest.importorskip("onnx", reason="onnx is not installed")
pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")

Floats = Any
Make = Callable[[str, str], tuple[Path, Path]]

FAMILIES = (
    "llama_tied",
    "llama_untied",
    "qwen2",
    "qwen3",
    "gemma",
    "gpt2",
    "mistral_short",
    "gemma2_short",
    "opt",
)
FORMATS = (
    "int8",
    "int8:channel:asym:bf16:a16token",
    "int8:channel:sym:bf16:a8token",
    "int8:tensor:sym:fp32:a16token",
    "int8:g32:sym:fp16:a16token",
    "int6:g32:asym:fp16",
    "int4",
    "int4:g32:asym:bf16:a16token",
    "int4:g32:asym:bf16:a8g32",
    "int4:g48:sym:bf16:a16token",
    "int3:channel:asym:bf16:a8token",
    "int2:g16:asym:fp32",
    "fp16",
    "bf16",
)


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function: `make("gpt2", "int8")` returns an artifact of that tiny model and its verified ONNX folder."""
    checkpoints: dict[str, Path] = {}
    made: dict[tuple[str, str], tuple[Path, Path]] = {}

    def get(kind: str, scheme: str) -> tuple[Path, Path]:
        if kind not in checkpoints:
            checkpoints[kind] = tiny.make_checkpoint(kind, tmp_path_factory.mktemp("model"))
        if (kind, scheme) not in made:
            folder = tmp_path_factory.mktemp("export")
            quantize_checkpoint(checkpoints[kind], folder / "artifact", format=scheme)
            done = exporters.export(artifact.open(folder / "artifact"), "onnx", folder / "onnx")
            assert done.verified is not None
            assert done.verified > 30_000
            made[kind, scheme] = folder / "artifact", folder / "onnx"
        return made[kind, scheme]

    return get


class Session(OnnxEngine):
    """A folder's graph in onnxruntime, with its cache."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "model.onnx", threads=1)
        self.start(1, 128)

    def step(self, tokens: Any) -> Floats:
        """Logits `[length, vocabulary]` after each of the next tokens."""
        return self.feed(np.asarray(tokens, np.int64)[None], last=False)[0]


def tokens(count: int = 48) -> Any:
    return np.random.default_rng(0).integers(0, 256, count)


def far(found: Floats, meant: Floats) -> float:
    return float(np.abs(found - meant).max() / np.abs(meant).max())


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_float_model_computes_what_transformers_computes(make: Make, kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = tiny.make_checkpoint(kind, tmp_path / "model")
    _, folder = make(kind, "fp32")
    with torch.inference_mode():
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
        meant = model(torch.from_numpy(tokens())[None]).logits[0].numpy()
    assert far(Session(folder).step(tokens()), meant) < 1e-4


@pytest.mark.parametrize("kind", ["llama_tied", "gpt2", "mistral_short"])
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_pieces_and_single_tokens_with_a_cache_are_the_whole(make: Make, kind: str, scheme: str) -> None:
    _, folder = make(kind, scheme)
    whole, pieces = Session(folder).step(tokens()), Session(folder)
    cuts = [0, 20, 40, *range(41, 49)]
    parts = [pieces.step(tokens()[start:end]) for start, end in itertools.pairwise(cuts)]
    assert far(np.concatenate(parts), whole) < 1e-3


@pytest.mark.parametrize("scheme", FORMATS)
def test_every_format_computes_what_the_universal_runtime_computes(make: Make, scheme: str) -> None:
    source, folder = make("llama_tied", scheme)
    meant = open_runner(source, engine="universal").logits(tokens()[None])[0]
    found = Session(folder).step(tokens())
    assert float(np.mean(divergence(meant, found, tokens()).kl)) < 0.002


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_every_family_computes_what_the_universal_runtime_computes(
    make: Make, kind: str, scheme: str
) -> None:
    source, folder = make(kind, scheme)
    meant = open_runner(source, engine="universal").logits(tokens()[None])[0]
    assert far(Session(folder).step(tokens()), meant) < 5e-3


def test_a_tied_head_is_stored_once(make: Make) -> None:
    source, folder = make("llama_tied", "int8")
    held = artifact.open(source).nbytes
    scales_and_rotation = 64_000
    assert (folder / "model.onnx.data").stat().st_size < held + scales_and_rotation


def test_same_artifact_same_bytes(make: Make, tmp_path: Path) -> None:
    source, folder = make("llama_tied", "int4")
    exporters.export(artifact.open(source), "onnx", tmp_path / "again")
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_genai_is_told_the_families_that_it_knows(make: Make) -> None:
    config = json.loads((make("qwen2", "int8")[1] / "genai_config.json").read_text())
    assert config["model"]["type"] == "qwen2"
    assert config["model"]["decoder"]["num_key_value_heads"] == 2
    assert config["model"]["eos_token_id"] == 257
    for kind in ("opt", "gpt2"):
        config = json.loads((make(kind, "int8")[1] / "genai_config.json").read_text())
        assert config["model"]["type"] == "decoder"


@pytest.mark.parametrize(
    ("kind", "scheme", "why"),
    [
        ("mixtral", "int8", "mixtral"),
        ("llama3_rope", "int8", "multiple of 16 channels, not 24"),
        ("llama_tied", "int4:g8:sym:bf16:a16token", "groups of 8"),
        ("llama_tied", "int8:channel:sym:bf16:a8g24", "blocks of the weight"),
    ],
)
def test_problems_are_named_before_any_work(kind: str, scheme: str, why: str, tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint(kind, tmp_path / "model")
    quantize_checkpoint(checkpoint, tmp_path / "artifact", format=scheme)
    source = artifact.open(tmp_path / "artifact")
    assert any(why in problem for problem in exporters.load("onnx").problems(source))
    with pytest.raises(UnsupportedError, match=why):
        exporters.export(source, "onnx", tmp_path / "out")
    assert {each.name for each in tmp_path.iterdir()} == {"model", "artifact"}


def test_a_changed_weight_is_caught_and_nothing_is_left(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zeropoint.onnx import weights

    honest = weights._pack
    monkeypatch.setattr(weights, "_pack", lambda codes, bits: honest(codes, bits) ^ np.uint8(1))
    with pytest.raises(GateError, match="values changed"):
        exporters.export(artifact.open(make("llama_tied", "int4")[0]), "onnx", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_short_data_file_is_one_clear_error(make: Make, tmp_path: Path) -> None:
    source, _ = make("llama_tied", "int8")
    exporters.export(artifact.open(source), "onnx", tmp_path / "out")
    data = tmp_path / "out/model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    with pytest.raises(ArtifactError, match="too short"):
        list(exporters.load("onnx").read_back(artifact.open(source), tmp_path / "out"))
