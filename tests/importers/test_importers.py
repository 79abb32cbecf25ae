"""What other tools quantized becomes an artifact of the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from tests.support import tiny
from zeropoint import artifact, exporters, importers
from zeropoint.checkpoint import open_checkpoint
from zeropoint.cli.main import main
from zeropoint.errors import CheckpointError, UnsupportedError, UsageError
from zeropoint.files.json_file import CARD_NAME
from zeropoint.planning import uniform_plan
from zeropoint.quantization import quantize_checkpoint
from zeropoint.values.qtensor import Weight

Tiny = Callable[[str], Path]


def floats(weight: Weight) -> NDArray[np.float32]:
    return weight.astype(np.float32) if isinstance(weight, np.ndarray) else weight.dequantize()


def assert_equal(first: Path, second: Path) -> None:
    one, other = artifact.open(first), artifact.open(second)
    assert set(one.names()) == set(other.names())
    for name in one.names():
        np.testing.assert_array_equal(floats(one.read(name)), floats(other.read(name)), err_msg=name)


def quantized(kind: str, scheme: str, folder: Path) -> Path:
    checkpoint = tiny.make_checkpoint(kind, folder / "model")
    tiny.write_tokenizer(checkpoint, merges=[("t", "h")])
    quantize_checkpoint(checkpoint, folder / "artifact", format=scheme)
    return folder / "artifact"


@pytest.mark.parametrize("scheme", ["int8", "int4", "bf16"])
@pytest.mark.parametrize(
    "kind", ["llama_tied", "llama_untied", "qwen2", "qwen3", "gemma", "gpt2", "yarn_rope"]
)
def test_a_gguf_file_comes_back_with_the_same_numbers(kind: str, scheme: str, tmp_path: Path) -> None:
    source = quantized(kind, scheme, tmp_path)
    exporters.export(artifact.open(source), "gguf", tmp_path / "m.gguf")
    made = importers.import_model(tmp_path / "m.gguf", tmp_path / "back")
    assert made.format == "gguf"
    assert_equal(source, tmp_path / "back")
    assert artifact.open(tmp_path / "back").layout == artifact.open(source).layout
    texts = "then the other 12 things <s>"
    first, second = (
        Tokenizer.from_file(str(each / "tokenizer.json")) for each in (source, tmp_path / "back")
    )
    assert first.encode(texts).ids == second.encode(texts).ids


@pytest.mark.parametrize(
    "scheme", ["int8", "int8:a8token", "int4", "int4:g32:asym:bf16", "int3:g16:sym:bf16"]
)
@pytest.mark.parametrize("kind", ["llama_tied", "llama_untied"])
def test_a_compressed_tensors_folder_is_an_artifact_without_its_card(
    kind: str, scheme: str, tmp_path: Path
) -> None:
    source = quantized(kind, scheme, tmp_path)
    (source / CARD_NAME).rename(tmp_path / CARD_NAME)
    importers.import_model(source, tmp_path / "back")
    (tmp_path / CARD_NAME).rename(source / CARD_NAME)
    assert_equal(source, tmp_path / "back")


def test_packed_codes_of_8_bits(tmp_path: Path) -> None:
    checkpoint = tiny.make_checkpoint("llama_untied", tmp_path / "model")
    plan = uniform_plan(open_checkpoint(checkpoint), "int8", embedding="keep")
    quantize_checkpoint(checkpoint, tmp_path / "a", plan=plan)
    exporters.export(artifact.open(tmp_path / "a"), "vllm", tmp_path / "packed")
    importers.import_model(tmp_path / "packed", tmp_path / "back")
    assert_equal(tmp_path / "a", tmp_path / "back")


@pytest.mark.parametrize("packed", [True, False])
def test_codes_of_minus_128_survive(packed: bool, tmp_path: Path) -> None:
    """compressed-tensors' symmetric grid has 256 codes, ours 255."""
    checkpoint = tiny.make_checkpoint("llama_untied", tmp_path / "model")
    plan = uniform_plan(open_checkpoint(checkpoint), "int8", embedding="keep")
    quantize_checkpoint(checkpoint, tmp_path / "a", plan=plan)
    folder = tmp_path / ("packed" if packed else "plain")
    exporters.export(artifact.open(tmp_path / "a"), "vllm" if packed else "transformers", folder)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    if packed:
        tensors[f"{name}.weight_packed"][0, 0] &= ~0xFF  # the lowest byte is the first code plus 128
    else:
        tensors[f"{name}.weight"][0, 0] = -128
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    importers.import_model(folder, tmp_path / "back")
    weight = artifact.open(tmp_path / "back").read(f"{name}.weight")
    assert floats(weight)[0, 0] == -128 * tensors[f"{name}.weight_scale"][0, 0].astype(np.float32)
    tiny.write_tokenizer(tmp_path / "back", merges=[("t", "h")])
    exporters.export(artifact.open(tmp_path / "back"), "gguf", tmp_path / "m.gguf")


def write_gptq(
    checkpoint: Path, out: Path, *, symmetric: bool, version: str = "gptq", scattered: bool = False
) -> dict[str, NDArray[np.float32]]:
    """A GPTQ folder in groups of 32, and what its weights mean; packed bit by bit, as the format is described."""
    rng = np.random.default_rng(0)
    tensors = load_file(checkpoint / "model.safetensors")
    meant: dict[str, NDArray[np.float32]] = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors.pop(name).shape
        stem = name.removesuffix(".weight")
        codes = rng.integers(0, 16, (columns, rows))
        zeros = np.full((columns // 32, rows), 8) if symmetric else rng.integers(1, 16, (columns // 32, rows))
        scales = rng.uniform(0.001, 0.01, zeros.shape).astype(np.float16)
        groups = np.arange(columns) // 32
        groups = rng.permutation(groups) if scattered else groups
        stored = zeros - (version == "gptq")
        tensors[f"{stem}.qweight"] = pack(codes.T).T.copy()
        tensors[f"{stem}.qzeros"] = pack(stored)
        tensors[f"{stem}.scales"] = scales
        tensors[f"{stem}.g_idx"] = groups.astype(np.int32)
        meant[name] = ((codes - zeros[groups]).astype(np.float32) * scales[groups].astype(np.float32)).T
    out.mkdir()
    for file in checkpoint.glob("*.json"):
        (out / file.name).write_bytes(file.read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    section = {"quant_method": "gptq", "bits": 4, "group_size": 32, "checkpoint_format": version}
    (out / "config.json").write_text(json.dumps({**config, "quantization_config": section}))
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    return meant


def pack(codes: NDArray[Any]) -> NDArray[np.int32]:
    """`[m, n]` 4-bit codes -> int32 `[m, n / 8]`, the first in the lowest bits."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint32)
    for i in range(8):
        words |= codes[:, i::8].astype(np.uint32) << np.uint32(4 * i)
    return words.view(np.int32)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(symmetric: bool, version: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    meant = write_gptq(
        tiny_checkpoint("llama_untied"), tmp_path / "gptq", symmetric=symmetric, version=version
    )
    made = importers.import_model(tmp_path / "gptq", tmp_path / "out")
    assert made.format == "gptq"
    opened = artifact.open(tmp_path / "out")
    for name, values in meant.items():
        weight = opened.read(name)
        np.testing.assert_array_equal(floats(weight), values, err_msg=name)
        scheme = opened.plan.choices[name].scheme
        assert scheme is not None
        assert str(scheme) == f"int4:g32:{'sym' if symmetric else 'asym'}:fp16:a16token"


def test_awq(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    source, out = tiny_checkpoint("llama_untied"), tmp_path / "awq"
    meant = write_gptq(source, out, symmetric=False, version="gptq_v2")
    tensors = load_file(out / "model.safetensors")
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    for stem in [name.removesuffix(".qweight") for name in tensors if name.endswith(".qweight")]:
        del tensors[f"{stem}.g_idx"]
        codes = unpack(tensors[f"{stem}.qweight"].T).T
        for leaf, values in (("qweight", codes), ("qzeros", unpack(tensors[f"{stem}.qzeros"]))):
            tensors[f"{stem}.{leaf}"] = pack(
                values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape)
            )
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}
    (out / "config.json").write_text(json.dumps(config))
    importers.import_model(out, tmp_path / "out")
    opened = artifact.open(tmp_path / "out")
    for name, values in meant.items():
        np.testing.assert_array_equal(floats(opened.read(name)), values, err_msg=name)


def unpack(words: NDArray[Any]) -> NDArray[Any]:
    """The inverse of `pack`."""
    spread = words.view(np.uint32)[:, :, None] >> np.arange(0, 32, 4, dtype=np.uint32)
    return (spread & 15).reshape(len(words), -1)


def test_groups_of_scattered_inputs_are_refused(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    write_gptq(tiny_checkpoint("llama_untied"), tmp_path / "gptq", symmetric=True, scattered=True)
    with pytest.raises(UnsupportedError, match="scattered"):
        importers.import_model(tmp_path / "gptq", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_command_and_its_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = quantized("llama_tied", "int8", tmp_path)
    exporters.export(artifact.open(source), "gguf", tmp_path / "m.gguf")
    command = ["import", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "out")]
    assert main([*command, "--json", str(tmp_path / "i.json")]) == 0
    assert json.loads((tmp_path / "i.json").read_text())["format"] == "gguf"
    assert main(command) == 2
    assert "exists" in capsys.readouterr().err
    with pytest.raises(UsageError):
        importers.import_model(tmp_path / "m.gguf", tmp_path / "out")
    for missing in (tmp_path / "none", tmp_path / "model", source):
        with pytest.raises(CheckpointError):
            importers.import_model(missing, tmp_path / "other")
    generated = main(["generate", str(tmp_path / "out"), "--prompt", "the", "--max-new-tokens", "4"])
    assert generated == 0
