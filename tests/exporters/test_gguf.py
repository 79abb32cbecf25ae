"""GGUF files say what the artifact says: read back by us, and by transformers' own reader."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import tiny
from zeropoint import artifact, exporters
from zeropoint.checkpoint import open_checkpoint
from zeropoint.cli.main import main
from zeropoint.errors import GateError, UnsupportedError, UsageError
from zeropoint.gguf.file import GgufFile
from zeropoint.gguf.vocabulary import read_vocabulary
from zeropoint.planning import uniform_plan
from zeropoint.planning.uniform import plan_nbytes
from zeropoint.quantization import quantize_checkpoint
from zeropoint.values.plan import Plan

Make = Callable[[str, str], Path]

FAMILIES = ("llama_tied", "llama_untied", "qwen2", "qwen3", "gemma", "gpt2")
ROTATIONS = ("llama3_rope", "linear_rope", "yarn_rope")
#: What transformers' reader of GGUF reads whole: not Gemma 1, nor biases in a Llama, nor a short GPT-2 or Qwen 3 head.
READ_BY_TRANSFORMERS = ("llama_tied", "llama_untied", "qwen2", "linear_rope", "yarn_rope")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Return a function: `make("gpt2", "int8")` returns an artifact of that tiny model, whose tokenizer has a merge."""
    made: dict[tuple[str, str], Path] = {}

    def get(kind: str, scheme: str) -> Path:
        if (kind, scheme) not in made:
            folder = tmp_path_factory.mktemp("export")
            checkpoint = tiny.make_checkpoint(kind, folder / "model")
            tiny.write_tokenizer(checkpoint, merges=[("t", "h")])
            quantize_checkpoint(checkpoint, folder / "artifact", format=scheme)
            made[kind, scheme] = folder / "artifact"
        return made[kind, scheme]

    return get


def test_targets_are_modules_that_keep_the_contract() -> None:
    assert "gguf" in exporters.names()
    for name in exporters.names():
        module: Any = exporters.load(name)
        assert module.__doc__
        assert all(callable(getattr(module, each)) for each in ("problems", "write", "read_back"))
    with pytest.raises(UsageError, match="gguf"):
        exporters.load("_gguf")


@pytest.mark.parametrize("scheme", ["int8", "int4", "int4:g32:asym:bf16:a8g32", "fp16", "bf16"])
def test_every_format_is_read_back_equal(make: Make, scheme: str, tmp_path: Path) -> None:
    made = exporters.export(artifact.open(make("llama_tied", scheme)), "gguf", tmp_path / "m.gguf")
    assert made.verified is not None
    assert made.verified > 50_000
    assert made.nbytes == (tmp_path / "m.gguf").stat().st_size


@pytest.mark.parametrize("kind", [*FAMILIES, *ROTATIONS])
def test_every_family_is_read_back_equal(make: Make, kind: str, tmp_path: Path) -> None:
    made = exporters.export(artifact.open(make(kind, "int8")), "gguf", tmp_path / "m.gguf")
    assert made.verified is not None


def read_by_transformers(path: Path) -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.config, dict(model.state_dict())


@pytest.mark.parametrize("kind", READ_BY_TRANSFORMERS)
def test_the_file_is_read_by_transformers_as_the_same_model(make: Make, kind: str, tmp_path: Path) -> None:
    source = artifact.open(make(kind, "int8"))
    exporters.export(source, "gguf", tmp_path / "m.gguf")
    _, state = read_by_transformers(tmp_path / "m.gguf")
    for name in source.names():
        weight = source.read(name)
        meant = weight if isinstance(weight, np.ndarray) else weight.dequantize()
        np.testing.assert_array_equal(state[name].numpy(), meant.astype(np.float32), err_msg=name)


def test_the_header_carries_model_and_tokenizer(make: Make, tmp_path: Path) -> None:
    exporters.export(artifact.open(make("qwen2", "int8")), "gguf", tmp_path / "m.gguf")
    found = GgufFile(tmp_path / "m.gguf").metadata
    assert found["general.architecture"] == "qwen2"
    assert found["qwen2.attention.head_count_kv"] == 2
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.pre"] == "gpt-2"
    assert found["tokenizer.ggml.merges"] == ["t h"]
    assert found["tokenizer.ggml.tokens"][256:] == ["<s>", "</s>", "<pad>", "th"]
    assert found["tokenizer.ggml.eos_token_id"] == 257
    assert list(found["tokenizer.ggml.token_type"][255:]) == [1, 3, 3, 3, 1]


def test_same_artifact_same_bytes(make: Make, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        exporters.export(artifact.open(make("gpt2", "int8")), "gguf", tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_mixed_plan_is_one_file_of_several_types(tmp_path: Path) -> None:
    folder = tiny.make_checkpoint("llama_untied", tmp_path / "model")
    tiny.write_tokenizer(folder, merges=[("t", "h")])
    checkpoint = open_checkpoint(folder)
    choices = dict(uniform_plan(checkpoint, "int4", keep=("*up_proj*",)).choices)
    eight = uniform_plan(checkpoint, "int8").choices
    choices |= {name: choice for name, choice in eight.items() if "down_proj" in name}
    quantize_checkpoint(checkpoint, tmp_path / "mixed", plan=Plan(choices, plan_nbytes(checkpoint, choices)))
    made = exporters.export(artifact.open(tmp_path / "mixed"), "gguf", tmp_path / "m.gguf")
    assert set(made.written.formats) == {"F32", "Q4_0", "Q8_0"}


@pytest.mark.parametrize(
    ("kind", "scheme", "why"),
    [
        ("mixtral", "int8", "mixtral"),
        ("mistral", "int8", "32 positions in 2 layers"),
        ("opt", "int8", "no GGUF architecture"),
        ("llama_tied", "int4:g16:sym:bf16:a8g32", "groups of 16"),
        ("llama_tied", "int8:channel:sym:fp32:a16token", "not FP16 numbers"),
    ],
)
def test_problems_are_named_before_any_work(
    make: Make, kind: str, scheme: str, why: str, tmp_path: Path
) -> None:
    source = artifact.open(make(kind, scheme))
    assert any(why in problem for problem in exporters.load("gguf").problems(source))
    with pytest.raises(UnsupportedError, match=why):
        exporters.export(source, "gguf", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "splits text"),
        ({"normalizer": {"type": "Lowercase"}}, "normalizes"),
        ({"model": {"type": "WordPiece", "vocab": {}}}, "WordPiece"),
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "no merges"),
        ({"model": {"type": "BPE", "vocab": {"a": 4000}, "merges": ["a b"]}}, "ids up to 4000"),
    ],
)
def test_a_tokenizer_without_a_counterpart_is_a_problem(
    make: Make, change: dict[str, Any], why: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(make("llama_tied", "int8"), tmp_path / "artifact"))
    file = folder / "tokenizer.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert any(why in problem for problem in exporters.load("gguf").problems(artifact.open(folder)))


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_vocabulary_has_scores(prefix: bool, tmp_path: Path) -> None:
    size = tiny.write_sentencepiece(tmp_path, tiny.WORDS, prefix=prefix)
    found = read_vocabulary(tmp_path, {}, size + 1)
    assert (found.model, found.space_prefix) == ("llama", prefix)
    assert [kind.name for kind in found.types[:4]] == ["UNKNOWN", "CONTROL", "CONTROL", "BYTE"]
    assert found.types[-1].name == "UNUSED"
    score = dict(zip(found.tokens, found.scores, strict=True))
    assert score["\u2581t"] > score["\u2581the"] > score["a"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda data: data["model"]["merges"].pop(-1), r"in \d of \d ways"),
        (lambda data: data["model"]["merges"].append(data["model"]["merges"][0]), "in two places"),
        (lambda data: data.update(pre_tokenizer={"type": "Whitespace"}), "treats spaces"),
    ],
)
def test_merges_that_no_score_expresses_are_a_problem(
    change: Callable[[dict[str, Any]], Any], why: str, tmp_path: Path
) -> None:
    size = tiny.write_sentencepiece(tmp_path, tiny.WORDS, prefix=True)
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    with pytest.raises(UnsupportedError, match=why):
        read_vocabulary(tmp_path, {}, size)


def test_a_changed_weight_is_caught_and_nothing_is_left(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zeropoint.gguf.types import blocks

    honest = blocks.encode

    def off_by_one(*args: Any) -> Any:
        raw = honest(*args)
        raw[0, 5] ^= 1
        return raw

    monkeypatch.setattr(blocks, "encode", off_by_one)
    with pytest.raises(GateError, match="1 of "):
        exporters.export(artifact.open(make("llama_tied", "int8")), "gguf", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out, report = str(make("llama_tied", "int4")), tmp_path / "m.gguf", tmp_path / "r.json"
    command = ["export", source, "--to", "gguf", "--out", str(out)]
    assert main([*command, "--json", str(report)]) == 0
    assert "verified" in capsys.readouterr().out
    found = json.loads(report.read_text())
    assert found["target"] == "gguf"
    assert found["file_bytes"] == out.stat().st_size
    assert found["verified_weights"] > 50_000
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--no-verify"]) == 0
    assert "not verified" in capsys.readouterr().out
    assert main(["export", str(tmp_path), "--to", "gguf", "--out", str(tmp_path / "n.gguf")]) == 2


def test_the_python_entry_points(make: Make, tmp_path: Path) -> None:
    import zeropoint

    made = zeropoint.export(make("llama_tied", "int8"), "gguf", tmp_path / "m.gguf")
    assert made.verified is not None
    assert zeropoint.import_model(tmp_path / "m.gguf", tmp_path / "back").format == "gguf"


def test_the_small_install_is_told_which_extra_it_lacks(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make("llama_tied", "int8")
    for name in list(sys.modules):
        if name.startswith(("zeropoint.exporters.gguf", "zeropoint.gguf")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert main(["export", str(source), "--to", "gguf", "--out", str(tmp_path / "m.gguf")]) == 2
    assert "zeropoint[export]" in capsys.readouterr().err
