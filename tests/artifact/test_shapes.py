"""Tensors without dimensions or values, in an artifact and in a checkpoint: one sentence, whichever engine reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zeropoint.cli.main import main
from zeropoint.errors import ArtifactError, CheckpointError, ZeropointError
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime import open_runner

Tiny = Callable[[str], Path]
Tensors = dict[str, np.ndarray]
Q = "model.layers.0.self_attn.q_proj."
K = "model.layers.1.self_attn.k_proj."
PADDED = "model.layers.1.mlp.up_proj."
ENGINES = pytest.mark.parametrize("engine", ["native", "universal"])


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("whole")
    built: dict[str, Path] = {}

    def get(format: str) -> Path:
        if format not in built:
            quantize_checkpoint(tiny_checkpoint("llama_tied"), folder / str(len(built)), format=format)
            built[format] = folder / str(len(built))
        return built[format]

    return get


def as_scalar(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1)[:1].reshape(()).copy()


def no_values(value: np.ndarray) -> np.ndarray:
    return value.reshape(-1)[:0].copy()


def no_rows(value: np.ndarray) -> np.ndarray:
    return np.zeros((0, *value.shape[1:]), value.dtype)


def no_columns(value: np.ndarray) -> np.ndarray:
    return np.zeros((*value.shape[:-1], 0), value.dtype)


def one_more_dimension(value: np.ndarray) -> np.ndarray:
    return value[None].copy()


def many_dimensions(value: np.ndarray) -> np.ndarray:
    return value.reshape((1,) * 20 + value.shape).copy()


SHAPES = [as_scalar, no_values, no_rows, no_columns, one_more_dimension, many_dimensions]


def edited(source: Path, folder: Path, change: Callable[[Tensors], object]) -> Path:
    shutil.copytree(source, folder)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def padded(tensors: Tensors, lost: int) -> None:
    """Give another tensor the bytes that one has lost, so that their sum is what the card says."""
    name = min(key for key in tensors if key.startswith(PADDED))
    tensors[name] = np.concatenate([tensors[name].reshape(-1).view(np.uint8), np.zeros(lost, np.uint8)])


def refused(kind: type[ZeropointError], names: tuple[str, ...], *actions: Callable[[], object]) -> None:
    """Check that each action raises one sentence of `kind` with one of the names."""
    for action in actions:
        with pytest.raises(kind) as refusal:
            action()
        said = str(refusal.value)
        assert "\n" not in said
        assert any(name in said for name in names), said
        assert len(said) < 600


@pytest.mark.parametrize(
    ("format", "name"),
    [
        *(
            ("int4:g32:asym:bf16", Q + leaf)
            for leaf in ("weight_packed", "weight_scale", "weight_zero_point")
        ),
        ("int4:g32:asym:bf16", Q + "weight_shape"),
        ("int8", Q + "weight"),
        ("int8", Q + "weight_scale"),
        ("int8", "model.norm.weight"),
        ("int8", "model.layers.1.input_layernorm.weight"),
        ("fp16", K + "weight"),
        ("fp16", "model.embed_tokens.weight"),
    ],
)
def test_a_tensor_of_an_artifact(
    format: str, name: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    for number, shape in enumerate(SHAPES):

        def change(tensors: Tensors, shape: Callable[[np.ndarray], np.ndarray] = shape) -> None:
            before = tensors[name]
            tensors[name] = shape(before)
            if before.nbytes > tensors[name].nbytes:
                padded(tensors, before.nbytes - tensors[name].nbytes)

        folder = edited(whole(format), tmp_path / str(number), change)
        refused(
            ArtifactError,
            (name.rpartition(".")[0], PADDED),
            lambda folder=folder: open_runner(folder, engine="native", threads=1),
            lambda folder=folder: open_runner(folder, engine="universal", threads=1),
        )


@ENGINES
@pytest.mark.parametrize(
    ("format", "leaf"),
    [("int4", "weight_packed"), ("int8", "weight"), ("int4:g32:asym", "weight_scale"), ("fp16", "weight")],
)
def test_another_tensor_has_the_bytes_that_one_lacks(
    format: str,
    leaf: str,
    engine: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def change(tensors: Tensors) -> None:
        lost, other = tensors[Q + leaf], tensors[K + leaf]
        tensors[Q + leaf] = as_scalar(lost)
        tensors[K + leaf] = np.concatenate([other.reshape(-1), lost.reshape(-1)[1:]])[None]

    folder = edited(whole(format), tmp_path / "artifact", change)
    command = ["generate", str(folder), "--prompt", "x", "--max-new-tokens", "2", "--threads", "1"]
    assert main([*command, "--engine", engine]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "self_attn" in said.err


@pytest.mark.parametrize("name", [Q + "weight", "model.norm.weight", "model.embed_tokens.weight"])
def test_a_tensor_of_a_checkpoint(name: str, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    for number, shape in enumerate(SHAPES):

        def change(tensors: Tensors, shape: Callable[[np.ndarray], np.ndarray] = shape) -> None:
            tensors[name] = shape(tensors[name])

        folder, out = edited(tiny_checkpoint("llama_tied"), tmp_path / str(number), change), tmp_path / "out"
        refused(
            CheckpointError,
            (name,),
            lambda folder=folder: open_runner(folder, engine="native", threads=1),
            lambda folder=folder: open_runner(folder, engine="universal", threads=1),
            lambda folder=folder, out=out: quantize_checkpoint(folder, out, format="int8"),
        )
        assert not out.exists()
