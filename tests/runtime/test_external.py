"""Other runtimes' files run in those runtimes, and compute what the artifact that they were made from computes."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import forked, tiny
from zeropoint import artifact, exporters
from zeropoint.cli.main import main
from zeropoint.errors import CheckpointError, UnsupportedError, UsageError
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime import external, open_runner, prepare

Make = Callable[[str], tuple[Path, Path]]

#: Export target -> the package that runs it.
TARGETS = {"onnx": "onnxruntime", "gguf": "llama_cpp", "transformers": "compressed_tensors"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint whose tokenizer llama.cpp reads."""
    folder = tiny.make_checkpoint("llama_tied", tmp_path_factory.mktemp("model") / "tiny")
    tiny.write_tokenizer(folder, merges=[("t", "h")])
    return folder


@pytest.fixture(scope="module")
def make(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make("gguf")` -> an int8 artifact of a tiny model, and what it is exported to; skips without the runtime."""
    folder = tmp_path_factory.mktemp("foreign")
    source, made = folder / "int8", dict[str, Path]()

    def get(target: str) -> tuple[Path, Path]:
        pytest.importorskip(TARGETS[target], reason=f"{TARGETS[target]} is not installed")
        if not source.exists():
            quantize_checkpoint(model, source, format="int8")
        if target not in made:
            made[target] = exporters.export(artifact.open(source), target, folder / f"model.{target}").path
        return source, made[target]

    return get


def tokens(count: int = 48) -> Any:
    return np.random.default_rng(0).integers(0, 256, count)


@pytest.mark.parametrize("target", TARGETS)
def test_a_file_computes_what_its_artifact_computes(make: Make, target: str) -> None:
    source, file = make(target)
    prepare(file)
    other = open_runner(file, threads=1)
    ours = open_runner(source, threads=1)
    found, meant = other.logits(tokens()), ours.logits(tokens())
    assert found.shape == meant.shape
    assert np.abs(found - meant).max() < 0.03 * np.abs(meant).max()  # llama.cpp rounds inputs to 8 bits
    assert other.logits(np.stack([tokens(), tokens()])).shape == (2, 48, other.vocab_size)
    assert other.engine in ("onnxruntime", "llama.cpp", "transformers")
    assert other.artifact_bytes > 30_000


@pytest.mark.parametrize("target", ["onnx", "gguf"])
def test_a_cache_changes_nothing(make: Make, target: str) -> None:
    runner = open_runner(make(target)[1], threads=1)
    prompt, greedy = tokens(20).tolist(), list[int]()
    for _ in range(6):
        greedy.append(int(runner.logits(np.array([*prompt, *greedy]))[-1].argmax()))
    told: list[int] = []
    assert runner.generate(prompt, max_new_tokens=6, on_token=told.append) == greedy == told
    prefill, decode = runner.prefill_decode(np.stack([tokens(20)] * 3), 4)
    assert prefill > 0
    assert decode > 0
    assert runner.generate(prompt, max_new_tokens=6) == greedy  # after another shape
    with pytest.raises(UsageError, match="prompt is empty"):
        runner.generate([], max_new_tokens=1)


def test_llama_cpp_is_fed_more_tokens_than_it_takes_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make("gguf")[1]
    whole = open_runner(file, threads=1).logits(tokens())
    from zeropoint.runtime.external import llama_cpp

    monkeypatch.setattr(llama_cpp, "BATCH", 32)
    np.testing.assert_allclose(
        open_runner(file, threads=1).logits(tokens()), whole, atol=0.02 * np.abs(whole).max()
    )


@pytest.mark.parametrize("target", TARGETS)
def test_text_becomes_the_same_tokens(make: Make, target: str) -> None:
    source, file = make(target)
    ours, other = open_runner(source, threads=1), open_runner(file, threads=1)
    text = "Then the other; 12 thin things, \u00e9t\u00e9 \u2026\n</s>"
    assert other.encode(text) == ours.encode(text)
    assert other.decode(other.encode(text)) == text
    assert other.encode_prompt("the") == ours.encode_prompt("the")
    assert other.chat_prompt("the") == ours.chat_prompt("the")
    assert ours.stop_tokens <= other.stop_tokens


def test_a_chat_template_travels_in_a_gguf_file(make: Make, tmp_path: Path) -> None:
    source, _ = make("gguf")
    shutil.copytree(source, tmp_path / "chat")
    template = (
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}>"
    )
    (tmp_path / "chat/chat_template.jinja").write_text(template)
    exporters.export(artifact.open(tmp_path / "chat"), "gguf", tmp_path / "chat.gguf")
    found = open_runner(tmp_path / "chat.gguf", threads=1).chat_prompt("hi")
    assert found == open_runner(tmp_path / "chat", threads=1).chat_prompt("hi")


def folder_of(path: Path, method: str, **section: Any) -> Path:
    path.mkdir()
    config = {"model_type": "llama", "quantization_config": {"quant_method": method, **section}}
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_what_runs_what_is_known_from_names_and_configs(model: Path, tmp_path: Path) -> None:
    def said(path: Path) -> tuple[str, str] | None:
        found = external.identify(path)
        return None if found is None else (found.runtime, found.format)

    assert said(tmp_path / "decoder.onnx") == ("onnxruntime", "ONNX")
    assert said(folder_of(tmp_path / "a", "gptq", bits=4)) == ("transformers", "GPTQ 4 bits")
    assert said(folder_of(tmp_path / "b", "awq", bits=4)) == ("transformers", "AWQ 4 bits")
    section = {"format": "pack-quantized"}
    expected = ("transformers", "compressed-tensors pack-quantized")
    assert said(folder_of(tmp_path / "c", "compressed-tensors", **section)) == expected
    assert said(model) is None
    assert said(tmp_path / "nothing") is None
    (tmp_path / "c/zeropoint.json").write_text("{}")  # an artifact
    assert said(tmp_path / "c") is None


@pytest.mark.parametrize(
    ("package", "name", "advice"),
    [
        ("onnxruntime", "model.onnx", "pip install onnxruntime"),
        ("gptqmodel", "gptq", "pip install gptqmodel"),
        ("compressed_tensors", "compressed-tensors", "pip install compressed-tensors"),
    ],
)
def test_a_missing_runtime_is_named_with_what_to_install(
    package: str, name: str, advice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    path = tmp_path / name
    if path.suffix:
        path.touch()
        (tmp_path / "tokenizer.json").touch()
    else:
        folder_of(path, name)
    with pytest.raises(UnsupportedError, match=f"not installed: {advice}|does not load .*: {advice}"):
        open_runner(path)


@pytest.mark.parametrize(
    ("target", "file"), [("gguf", ""), ("onnx", "model.onnx"), ("onnx", "model.onnx.data")]
)
def test_a_damaged_file_is_one_clear_error(make: Make, target: str, file: str, tmp_path: Path) -> None:
    _, made = make(target)
    copy = tmp_path / made.name
    shutil.copytree(made, copy) if made.is_dir() else shutil.copyfile(made, copy)
    damaged = copy / file if file else copy
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="does not load") as raised:
        open_runner(copy)
    assert "\n" not in str(raised.value)


def test_engines_and_types_of_ours_are_not_theirs(make: Make, tmp_path: Path) -> None:
    _, folder = make("onnx")
    with pytest.raises(UsageError, match="zeropoint import"):
        open_runner(folder, engine="native")
    with pytest.raises(UsageError, match="its own types"):
        open_runner(folder, dtype="float32")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_runner(tmp_path / "none.gguf")
    shutil.copytree(folder, tmp_path / "bare")
    (tmp_path / "bare/tokenizer.json").unlink()
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json beside it"):
        open_runner(tmp_path / "bare")


def test_a_graph_that_is_no_decoder_is_refused(model: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opsets = [onnx.helper.make_opsetid("", 21)]
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    shutil.copy(model / "tokenizer.json", tmp_path)
    with pytest.raises(UnsupportedError, match="has the input x, which"):
        open_runner(tmp_path / "m.onnx")


def test_compare_measures_files_beside_artifacts(make: Make, model: Path, tmp_path: Path) -> None:
    (source, onnx), (_, folder) = make("onnx"), make("transformers")
    names = [str(each) for each in (model, source, onnx, folder)]
    command = ["compare", *names, "--tokens", "200", "--prompt-tokens", "16", "--new-tokens", "4"]
    assert main([*command, "--threads", "1", "--prompt", "hi", "--json", str(tmp_path / "r.json")]) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["models"]["model.onnx"]["format"] == "ONNX"
    assert report["models"]["model.onnx"]["runtime"] == "onnxruntime"
    kl = {row["model"]: row["value"] for row in report["measurements"] if row["metric"] == "kl_divergence"}
    assert kl["model.onnx"] == pytest.approx(kl["int8"], rel=0.3)
    rates = [row for row in report["measurements"] if row["metric"] == "decode_tokens_per_second"]
    assert {row["model"] for row in rates} == {"tiny", "int8", "model.onnx", "model.transformers"}
    assert any("onnxruntime engine" in row["where"] for row in rates)


@pytest.mark.parametrize("target", TARGETS)
def test_an_export_is_run_beside_its_artifact(
    make: Make, target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, _ = make(target)
    command = [
        "export",
        str(source),
        "--to",
        target,
        "--out",
        str(tmp_path / f"out.{target}"),
        "--threads",
        "1",
    ]
    assert main([*command, "--json", str(tmp_path / "e.json")]) == 0
    found = json.loads((tmp_path / "e.json").read_text())["agreement"]
    assert f"{found['runtime']} runs it: KL" in capsys.readouterr().out
    assert found["against"] == "artifact"
    assert found["scored_tokens"] >= 1000
    assert found["kl_divergence"] < 0.002
    assert found["top1_agreement"] > 0.95
    assert 0 < found["greedy_tokens"] <= 64
    if target != "onnx":  # which rounds nothing further
        assert found["exact"]["kl_divergence"] < 1e-5
        assert found["exact"]["same_greedy_tokens"] == found["greedy_tokens"]


def test_a_file_of_llama_cpps_types_is_run_beside_the_float_model(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama_cpp is not installed")
    lost = {}
    for mix in ("Q8_0", "Q4_0"):
        out, report = str(tmp_path / f"{mix}.gguf"), str(tmp_path / f"{mix}.json")
        command = ["export", str(model), "--to", "gguf", "--type", mix, "--out", out, "--threads", "1"]
        assert main([*command, "--calibration-tokens", "256", "--json", report]) == 0
        found = json.loads(Path(report).read_text())["agreement"]
        assert (found["runtime"], found["against"]) == ("llama.cpp", "float model")
        assert "from the float model, which is what it loses; top-1" in capsys.readouterr().out
        lost[mix] = found["kl_divergence"]
    assert 0 < lost["Q8_0"] < lost["Q4_0"] < 0.1


def test_an_export_without_its_runtime_says_what_to_install(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = make("onnx")
    broken = tmp_path / "packages/onnxruntime.py"
    broken.parent.mkdir()
    broken.write_text("raise ImportError('no such library')\n")
    monkeypatch.setenv("PYTHONPATH", str(broken.parent))
    out = tmp_path / "out"
    with forked.new_processes():  # a fork has read PYTHONPATH already
        assert main(["export", str(source), "--to", "onnx", "--out", str(out)]) == 0
    assert "not run: ONNX models are run by onnxruntime, which does not load" in capsys.readouterr().out
    assert main(["export", str(source), "--to", "onnx", "--out", str(tmp_path / "again"), "--no-run"]) == 0
    assert "run" not in capsys.readouterr().out.split("verified")[1]


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: [tensors.pop(key) for key in list(tensors) if name in key].clear()


def _shorter(tensors: dict[str, Any]) -> None:
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()


def _narrower(tensors: dict[str, Any]) -> None:
    name = "model.layers.0.input_layernorm.weight"
    tensors[name] = tensors[name].repeat(2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_without("model.norm.weight"), r"lacks 1 tensors .* model\.norm\.weight"),
        (_without("layers.0.mlp.up_proj"), "lacks integer weights"),
        (_without("layers.1.self_attn.q_proj.weight_scale"), r"lacks \d tensors .*q_proj\.weight_scale"),
        (_without("embed_tokens"), "lacks integer weights"),
        (_shorter, r"another shape .* model\.norm\.weight"),
        (_narrower, r"another shape .* model\.layers\.0\.input_layernorm\.weight"),
    ],
)
def test_a_quantized_folder_never_runs_on_random_weights(
    make: Make, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(make("transformers")[1], tmp_path / "changed"))
    (file,) = folder.glob("*.safetensors")
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=said):
        open_runner(folder, threads=1)
