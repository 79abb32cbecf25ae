"""A damaged artifact is refused with an `ArtifactError`, whatever byte or field was changed; nothing else is raised."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zeropoint import artifact
from zeropoint.errors import ArtifactError, CheckpointError, ZeropointError
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.quantization import quantize_checkpoint

Tiny = Callable[[str], Path]


@pytest.fixture(scope="module")
def whole(tiny_checkpoint: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("artifact") / "whole"
    quantize_checkpoint(tiny_checkpoint("llama_tied"), out, format="int4:g32:asym:bf16:a8g32")
    return out


@pytest.fixture
def broken(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "broken"))


def read_all(folder: Path) -> None:
    artifact.open(folder).verify()


def survives(folder: Path) -> bool:
    """Whether it opens; anything but an `ArtifactError` fails the test."""
    try:
        read_all(folder)
    except ArtifactError as error:
        return "\n" in str(error)  # a message of several lines counts as not refused
    return True


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every path into a JSON value; of long lists and wide objects the first and last two."""
    yield path
    keys: list[Any] = (
        list(value) if isinstance(value, dict) else list(range(len(value))) if isinstance(value, list) else []
    )
    for key in keys if len(keys) < 12 else keys[:2] + keys[-2:]:
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("name", ["zeropoint.json", "config.json"])
def test_mutated_json(name: str, broken: Path) -> None:
    path = broken / name
    data = json.loads(path.read_text())
    count = refused = 0
    for place in places(data):
        for junk in (None, -1, "x", [], {}, 1e300, "DROP"):
            mutated = copy.deepcopy(data)
            owner: Any = mutated
            for key in place[:-1]:
                owner = owner[key]
            if not place:
                mutated = junk
            elif junk == "DROP":
                del owner[place[-1]]
            else:
                owner[place[-1]] = junk
            path.write_text(json.dumps(mutated))
            count += 1
            refused += not survives(broken)
    assert count > 200
    assert refused > (count // 3 if name == "zeropoint.json" else 5)


@pytest.mark.parametrize("name", ["zeropoint.json", "config.json"])
@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "\x00", '{"a": NaN}', "[" * 100_000, '{"format_version": 2}', '"' + "x" * 100],
)
def test_files_that_are_not_ours(name: str, text: str, broken: Path) -> None:
    (broken / name).write_text(text)
    assert not survives(broken)


@pytest.mark.parametrize("name", ["zeropoint.json", "config.json", "model.safetensors"])
def test_missing_files(name: str, broken: Path) -> None:
    (broken / name).unlink()
    assert not survives(broken)


def test_truncated_tensors(broken: Path) -> None:
    path = broken / "model.safetensors"
    data = path.read_bytes()
    for keep in (0, 1, 7, 8, 9, 100, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:keep])
        assert not survives(broken)
    path.write_bytes(data + b"more")
    assert not survives(broken)


def test_mutated_tensor_data(broken: Path) -> None:
    """Codes may change unnoticed (any code is a code), but never with another exception."""
    path = broken / "model.safetensors"
    data = path.read_bytes()
    random = np.random.default_rng(1)
    start = 8 + int.from_bytes(data[:8], "little")
    for _ in range(100):
        mutated = bytearray(data)
        for place in random.integers(start, len(data), 20):
            mutated[int(place)] = int(random.integers(0, 256))
        path.write_bytes(mutated)
        survives(broken)


def replaced(folder: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


UP = "model.layers.0.mlp.up_proj"


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop(f"{UP}.weight_scale"),
        lambda t: t.update(stranger=np.zeros(3, np.float32)),
        lambda t: t.update({f"{UP}.weight_shape": np.array([96, 63])}),
        lambda t: t.update({f"{UP}.weight_shape": np.array([-1, 64])}),
        lambda t: t.update({f"{UP}.weight_shape": np.array([1 << 60, 64])}),
        lambda t: t.update({f"{UP}.weight_shape": np.array([96.0, 64.0])}),
        lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"].astype(np.float16)}),
        lambda t: t.update({f"{UP}.weight_scale": t[f"{UP}.weight_scale"].T.copy()}),
        lambda t: t.update({f"{UP}.weight_packed": t[f"{UP}.weight_packed"].view(np.float32)}),
        lambda t: t.update({f"{UP}.weight_zero_point": t[f"{UP}.weight_zero_point"].reshape(-1)}),
        lambda t: t[f"{UP}.weight_scale"].view(np.uint16).__setitem__((0, 0), 0x7FC0),
        lambda t: t["model.norm.weight"].__setitem__(0, np.nan),
        lambda t: t["model.embed_tokens.weight"].__setitem__((0, 0), -128),
    ],
)
def test_wrong_tensors(change: Callable[[dict[str, np.ndarray]], Any], broken: Path) -> None:
    replaced(broken, change)
    assert not survives(broken)


def test_shard_index_stays_in_its_folder(broken: Path) -> None:
    (broken / "model.safetensors").rename(broken.parent / "model.safetensors")
    index = {"weight_map": {"a": "../model.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="not a file of this folder"):
        artifact.open(broken)


def test_update_card(broken: Path) -> None:
    artifact.update_card(broken, quality={"kl": 0.1}, verdict={"passed": True})
    artifact.update_card(broken, machine={"cores": 2})
    card = artifact.open(broken).card
    assert (card["quality"], card["verdict"], card["machine"]) == (
        {"kl": 0.1},
        {"passed": True},
        {"cores": 2},
    )
    before = (broken / "zeropoint.json").read_bytes()
    with pytest.raises(ArtifactError, match="not plain JSON"):
        artifact.update_card(broken, quality={"kl": float("nan")})
    with pytest.raises(ArtifactError, match="not plain JSON"):
        artifact.update_card(broken, quality={"kl": object()})
    assert (broken / "zeropoint.json").read_bytes() == before
    (broken / "zeropoint.json").write_text("{}")
    with pytest.raises(ArtifactError, match="malformed"):
        artifact.update_card(broken, quality={})


def test_a_path_that_is_no_artifact(tmp_path: Path) -> None:
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(ArtifactError):
            artifact.open(path)


def test_tensor_files_say_who_is_at_fault(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"junk")
    kinds: tuple[type[ZeropointError], ...] = (ArtifactError, CheckpointError)
    for kind in kinds:
        with pytest.raises(kind, match="truncated or not a safetensors file"):
            TensorFile(tmp_path / "x", kind)
        with pytest.raises(kind, match="is missing"):
            TensorFile(tmp_path / "y", kind)
