"""Folders of other tools: each grid that can be kept is kept exactly, and each that cannot is named."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from tests.importers.test_importers import floats
from zeropoint import artifact, importers
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError, UnsupportedError, ZeropointError
from zeropoint.files.json_file import CARD_NAME
from zeropoint.sources import quantized

Tiny = Callable[[str], Path]
Meant = dict[str, NDArray[np.float32]]

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False, "data_type": "int"}
DOWN8 = {"+:.*down_proj": {"bits": 8}}


def stream(codes: NDArray[Any], bits: int) -> NDArray[np.int32]:
    """Codes `[m, n]` -> int32 words along the rows: one stream of bits, written out bit by bit."""
    spread = (codes[:, :, None] >> np.arange(bits)) & 1
    return np.packbits(spread.astype(np.uint8).reshape(len(codes), -1), axis=1, bitorder="little").view("<i4")


def write(
    source: Path,
    out: Path,
    section: Mapping[str, Any],
    bits_of: Callable[[str], int | None] = lambda name: 4,
    *,
    less_one: bool = True,
    sizes: Callable[[str], int] = lambda name: 32,
    index: Callable[[NDArray[Any]], NDArray[Any]] | None = lambda groups: groups,
    packing: str = "gptq",
) -> Meant:
    """A folder of random codes in the packing of "gptq", "gemm" or "gemv", and what its weights mean."""
    rng = np.random.default_rng(0)
    shutil.copytree(source, out)
    tensors = load_file(source / "model.safetensors")
    meant: Meant = {}
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        bits, stem = bits_of(name), name.removesuffix(".weight")
        if bits is None:
            meant[name] = tensors[name]
            continue
        rows, columns = tensors.pop(name).shape
        size = columns if sizes(name) == -1 else sizes(name)
        groups = np.arange(columns) // size
        count = int(groups[-1]) + 1
        codes = rng.integers(0, 2**bits, (rows, columns))
        half = 2 ** (bits - 1)
        zeros = (
            np.full((rows, count), half) if section.get("sym") else rng.integers(1, 2**bits, (rows, count))
        )
        scales = rng.uniform(0.001, 0.01, zeros.shape).astype(np.float16)
        groups = groups if index is None else index(groups)
        meant[name] = (codes - zeros[:, groups]).astype(np.float32) * scales[:, groups].astype(np.float32)
        packed = PACKINGS[packing](codes, zeros - (less_one and packing == "gptq"), scales, bits)
        tensors |= {f"{stem}.{leaf}": np.ascontiguousarray(each) for leaf, each in packed.items()}
        if index is not None and packing == "gptq":
            tensors[f"{stem}.g_idx"] = groups.astype(np.int32)
    save_file(tensors, out / "model.safetensors", {"format": "pt"})
    set_section(out, section)
    return meant


def set_section(folder: Path, section: object, key: str = "quantization_config") -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: section}))


def pack_gptq(
    codes: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], bits: int
) -> dict[str, NDArray[Any]]:
    return {"qweight": stream(codes, bits).T, "qzeros": stream(zeros.T, bits), "scales": scales.T}


def pack_gemm(
    codes: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], bits: int
) -> dict[str, NDArray[Any]]:
    def words(values: NDArray[Any]) -> NDArray[Any]:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return stream(values.reshape(len(values), -1, 8)[:, :, order].reshape(values.shape), bits)

    return {"qweight": words(codes.T), "qzeros": words(zeros.T), "scales": scales.T}


def pack_gemv(
    codes: NDArray[Any], zeros: NDArray[Any], scales: NDArray[Any], bits: int
) -> dict[str, NDArray[Any]]:
    room = ((0, 0), (0, 32 - zeros.shape[1]))  # four words, of which a few groups are used
    return {
        "qweight": stream(codes, bits),
        "qzeros": stream(np.pad(zeros, room), bits),
        "scales": np.pad(scales, room),
    }


PACKINGS = {"gptq": pack_gptq, "gemm": pack_gemm, "gemv": pack_gemv}


def assert_kept(folder: Path, meant: Meant) -> artifact.Artifact:
    importers.import_model(folder, folder.parent / "out")
    opened = artifact.open(folder.parent / "out")
    for name, values in meant.items():
        np.testing.assert_array_equal(floats(opened.read(name)), values, err_msg=name)
    return opened


def refused(folder: Path) -> str:
    with pytest.raises(ZeropointError) as error:
        importers.import_model(folder, folder.parent / "out")
    assert not (folder.parent / "out").exists()
    return str(error.value)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
def test_gptq_of_any_bits(bits: int, symmetric: bool, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    section = {**GPTQ, "bits": bits, "sym": symmetric}
    assert_kept(
        tmp_path / "in", write(tiny_checkpoint("llama_untied"), tmp_path / "in", section, lambda name: bits)
    )


def down_8(name: str) -> int:
    return 8 if "down_proj" in name else 4


def first_layer_3(name: str) -> int | None:
    return 3 if ".0." in name else 4


def attention_floats(name: str) -> int | None:
    return None if "self_attn" in name else 4


LAYERS = {"model.layers.0.mlp.down_proj": {"bits": 8}, "model.layers.1.mlp.down_proj": {"bits": 8}}


@pytest.mark.parametrize(
    ("section", "bits_of", "less_one"),
    [
        ({**GPTQ, "dynamic": DOWN8}, down_8, True),
        ({**GPTQ, "dynamic": {r".*\.down_proj$": {"bits": 8}}}, down_8, True),
        ({**GPTQ, "dynamic": DOWN8, "checkpoint_format": "gptq_v2"}, down_8, False),
        ({**GPTQ, "dynamic": {r"model\.layers\.0\.": {"bits": 3}}}, first_layer_3, True),
        ({**GPTQ, "dynamic": {"-:.*self_attn": {}}}, attention_floats, True),
        ({**GPTQ, "sym": True, "dynamic": DOWN8}, down_8, True),
        ({**ROUND, "packing_format": "auto_round:auto_gptq", "extra_config": LAYERS}, down_8, True),
        ({**ROUND, "packing_format": "auto_round", "extra_config": {".*down_proj": {"bits": 8}}}, down_8, False),
        ({**ROUND, "packing_format": "auto_round:gptqmodel"}, lambda name: 4, False),
        ({**ROUND, "quant_method": "intel/auto-round", "backend": "auto_round:gptq:exllamav2"}, lambda name: 4, True),
        ({**ROUND, "packing_format": "auto_round:auto_gptq", "extra_config": {
            f"model.layers.{i}.self_attn.{x}_proj": {"bits": 16, "data_type": "fp"} for i in (0, 1) for x in "qkvo"
        }}, attention_floats, True),
    ],
)  # fmt: skip
def test_bits_of_single_layers(
    section: dict[str, Any],
    bits_of: Callable[[str], int | None],
    less_one: bool,
    tiny_checkpoint: Tiny,
    tmp_path: Path,
) -> None:
    source = tiny_checkpoint("llama_untied")
    assert_kept(tmp_path / "in", write(source, tmp_path / "in", section, bits_of, less_one=less_one))


@pytest.mark.parametrize(
    ("section", "size"),
    [
        ({**GPTQ, "group_size": 64}, lambda name: 64),  # of 96 inputs: the last group is short
        ({**GPTQ, "group_size": -1}, lambda name: -1),
        ({**GPTQ, "group_size": 128}, lambda name: 128),
        ({**GPTQ, "dynamic": {".*down": {"group_size": 16}}}, lambda name: 16 if "down" in name else 32),
    ],
)
@pytest.mark.parametrize("index", [None, lambda groups: groups, lambda groups: groups.max() - groups])
def test_groups_of_any_size_and_order(
    section: dict[str, Any],
    size: Callable[[str], int],
    index: Any,
    tiny_checkpoint: Tiny,
    tmp_path: Path,
) -> None:
    if index is not None and section["group_size"] == 64:
        index = lambda groups: groups  # noqa: E731 -- a short group is the last
    meant = write(tiny_checkpoint("llama_untied"), tmp_path / "in", section, sizes=size, index=index)
    assert_kept(tmp_path / "in", meant)


@pytest.mark.parametrize(
    "section",
    [
        {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True},
        {"quant_method": "awq", "w_bit": 4, "q_group_size": 32, "version": "GEMV"},
        {**ROUND, "packing_format": "auto_round:auto_awq"},
    ],
)
def test_awq_of_every_version(section: dict[str, Any], tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    section["modules_to_not_convert"] = ["self_attn"]
    packing = str(section.get("version", "gemm")).lower()
    source = tiny_checkpoint("llama_untied")
    assert_kept(tmp_path / "in", write(source, tmp_path / "in", section, attention_floats, packing=packing))


@pytest.mark.parametrize(
    ("name", "packing"), [("quantize_config.json", "gptq"), ("quant_config.json", "gemm")]
)
def test_a_config_of_its_own(name: str, packing: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    """Before these tools wrote into config.json."""
    folder = tmp_path / "in"
    meant = write(tiny_checkpoint("llama_untied"), folder, {}, packing=packing)
    set_section(folder, None)
    section = {"bits": 4, "group_size": 32} if packing == "gptq" else {"w_bit": 4, "q_group_size": 32}
    (folder / name).write_text(json.dumps(section))
    assert_kept(folder, meant)


@pytest.mark.parametrize(
    ("section", "bits_of", "says"),
    [
        (GPTQ, down_8, ["down_proj", "8 bits", "quantization_config", "4 bits"]),
        ({**GPTQ, "dynamic": {"+:.*down_proj": {"bits": 2}}}, down_8, ["down_proj", "8 bits", "dynamic", "2 bits"]),
        ({**GPTQ, "dynamic": {"-:.*down_proj": {}}}, down_8, ["down_proj", "dynamic", "float"]),
        ({**GPTQ, "dynamic": {"+:(": {"bits": 8}}}, down_8, ["dynamic", "pattern"]),
        ({**ROUND, "packing_format": "auto_round:auto_gptq", "extra_config": {
            "model.layers.0.mlp.down_proj": {"bits": 8}}}, down_8, ["layers.1.mlp.down_proj", "8 bits"]),
        ({**GPTQ, "group_size": 16}, lambda name: 4, ["_proj", "groups of 16"]),
        ({**GPTQ, "group_size": "many"}, lambda name: 4, ["_proj", "group_size", "many"]),
        ({**GPTQ, "sym": True, "checkpoint_format": "gptq_v2"}, lambda name: 4, ["_proj", "sym", "gptq"]),
    ],
)  # fmt: skip
def test_what_a_folder_says_wrongly_of_a_layer_is_named(
    section: dict[str, Any],
    bits_of: Callable[[str], int],
    says: list[str],
    tiny_checkpoint: Tiny,
    tmp_path: Path,
) -> None:
    write(tiny_checkpoint("llama_untied"), tmp_path / "in", section, bits_of, index=None)
    sentence = refused(tmp_path / "in")
    assert all(word in sentence for word in says), sentence


def test_scattered_groups_name_the_layer_and_the_field(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    write(tiny_checkpoint("llama_untied"), tmp_path / "in", {**GPTQ, "desc_act": True}, index=rng.permutation)
    sentence = refused(tmp_path / "in")
    assert "model.layers.0" in sentence
    assert "desc_act" in sentence


INT = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}


def compressed(**fields: Any) -> dict[str, Any]:
    weights = fields.pop("weights", INT)
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "config_groups": groups, **fields}


def transform(*locations: str) -> dict[str, Any]:
    applied = [{"targets": ["re:.*down_proj$"], "location": location} for location in locations]
    return {"config_groups": {"R4": {"type": "hadamard", "apply": applied}}}


#: What is not read -> words of the sentence.
UNREAD: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "FP8"),
    ({"quant_method": "fbgemm_fp8"}, "FBGEMM"),
    ({"quant_method": "mxfp4"}, "MXFP4"),
    ({"quant_method": "nvfp4"}, "NVFP4"),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "ModelOpt NVFP4"),
    ({"quant_algo": "FP8", "producer": {"name": "modelopt"}}, "ModelOpt FP8"),
    (
        {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
        "bitsandbytes NF4",
    ),
    ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes INT8"),
    ({"load_in_8bit": True}, "bitsandbytes"),
    ({"quant_method": "hqq"}, "HQQ"),
    ({"quant_method": "aqlm"}, "AQLM"),
    ({"quant_method": "eetq"}, "EETQ"),
    ({"quant_method": "quanto"}, "Quanto"),
    ({"quant_method": "torchao"}, "torchao"),
    ({"quant_method": "vptq"}, "VPTQ"),
    ({"quant_method": "bitnet"}, "BitNet"),
    ({"quant_method": "fp_quant"}, "FP-Quant"),
    ({"quant_method": "higgs"}, "HIGGS"),
    ({"quant_method": "spqr"}, "SpQR"),
    ({"quant_method": "quark"}, "Quark"),
    ({"quant_method": "exl2"}, "ExLlamaV2"),
    ({"quant_method": "quip_sharp"}, "QuIP#"),
    ({"quant_method": "spinquant"}, "SpinQuant"),
    ({"quant_method": "QuaRot"}, "QuaRot"),
    ({"quant_method": "of tomorrow"}, "of tomorrow"),
    ({"quant_method": 7}, "7"),
    ({**GPTQ, "checkpoint_format": "marlin"}, "marlin"),
    ({**GPTQ, "is_marlin_format": True}, "is_marlin_format"),
    ({**GPTQ, "pack_dtype": "int16"}, "pack_dtype"),
    ({**GPTQ, "adapter": {"name": "lora"}}, "adapter"),
    ({**GPTQ, "rotation": "hadamard"}, "rotation"),
    ({**GPTQ, "bits": 16}, "16 bits"),
    ({"quant_method": "awq", "bits": 4, "version": "gemv_fast"}, "gemv_fast"),
    ({"quant_method": "awq", "bits": 4, "version": "marlin"}, "marlin"),
    ({"quant_method": "awq", "bits": 3}, "3 bits"),
    ({"quant_method": "awq", "bits": 4, "backend": "llm-awq"}, "llm-awq"),
    ({**ROUND, "packing_format": "auto_round:llm_compressor"}, "AutoRound"),
    ({**ROUND, "data_type": "mx_fp"}, "data_type"),
    ({**ROUND, "act_bits": 8}, "act_bits"),
    (compressed(transform_config=transform("input", "weight_input")), "transform_config"),
    (compressed(transform_config=transform("q_attn")), "transform_config"),
    (compressed(transform_config=["R4"]), "transform_config"),
    (compressed(sparsity_config={"format": "sparse-24-bitmask"}), "sparse-24-bitmask"),
    (compressed(weights={"num_bits": 8, "type": "float"}), "FP8"),
    (compressed(weights={"num_bits": 4, "type": "float"}), "NVFP4"),
]


@pytest.mark.parametrize(("section", "says"), UNREAD, ids=[says for _, says in UNREAD])
def test_a_format_that_is_not_read_is_named_at_both_doors(
    section: dict[str, Any], says: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(tiny_checkpoint("llama_untied"), folder)
    set_section(folder, section)
    sentence = refused(folder)
    assert says in sentence
    assert "model that it was made from" in sentence
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    assert says in str(error.value)
    assert "zeropoint import" not in str(error.value), "the advice would not work"


@pytest.mark.parametrize(
    "section", [GPTQ, {**ROUND, "packing_format": "auto_round:auto_gptq"}, {"quant_method": "awq", "bits": 4},
                compressed(), compressed(transform_config=transform("weight_input", "weight_output"))],
)  # fmt: skip
@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_quantizing_says_to_import_what_can_be(
    section: dict[str, Any], key: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    shutil.copytree(tiny_checkpoint("llama_untied"), folder)
    set_section(folder, section, key)
    with pytest.raises(CheckpointError, match="zeropoint import"):
        open_checkpoint(folder)
    assert quantized.why_not_imported(section) is None


def test_an_artifact_is_not_imported(tmp_path: Path) -> None:
    (tmp_path / CARD_NAME).write_text("{}")
    with pytest.raises(CheckpointError, match="artifact already"):
        importers.open_source(tmp_path)


def test_every_format_that_is_imported_has_its_importer() -> None:
    modules = [importlib.import_module(f"zeropoint.importers.{name}") for name in importers.names()]
    methods = {module.METHOD for module in modules if hasattr(module, "METHOD")}
    assert methods == set(quantized.IMPORTED)
    assert not set(quantized.IMPORTED) & set(quantized.OTHERS)


def test_stray_words_are_damage(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    write(tiny_checkpoint("llama_untied"), folder, {**GPTQ, "bits": 3}, lambda name: 3)
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("down_proj.qweight"))
    tensors[name] = tensors[name][:-1].copy()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises((CheckpointError, UnsupportedError), match="down_proj"):
        importers.open_source(folder)
