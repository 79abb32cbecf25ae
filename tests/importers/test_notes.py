"""What of a source an artifact does not hold is told: a quantized key-value cache, tensors without a place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from zeropoint import artifact, importers
from zeropoint.cli.main import main
from zeropoint.files.json_file import CARD_NAME
from zeropoint.quantization import quantize_checkpoint

Tiny = Callable[[str], Path]

FP8 = {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False, "symmetric": True}
INT8 = {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": True, "symmetric": True}
SCALES = [f"model.layers.{layer}.self_attn.{each}_scale" for layer in (0, 1) for each in "kv"]


def folder_with(tiny_checkpoint: Tiny, out: Path, scheme: Any, tensors: list[str]) -> Path:
    """Return a compressed-tensors folder with this `kv_cache_scheme` and these additional tensors."""
    quantize_checkpoint(tiny_checkpoint("llama_untied"), out, format="int4")
    (out / CARD_NAME).unlink()
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = scheme
    (out / "config.json").write_text(json.dumps(config))
    stored = load_file(out / "model.safetensors")
    more = {name: np.ones(1, np.float32) for name in tensors}
    save_file(stored | more, out / "model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize(
    ("scheme", "tensors", "said"),
    [
        (FP8, SCALES, "(8 bits, float)"),
        (INT8, [], "(8 bits, int)"),
        ({"num_bits": 4}, [], "(4 bits, ?)"),
        ("fp8", [], "(? bits, fp8)"),
    ],
)
def test_a_quantized_cache_is_told(
    scheme: Any, tensors: list[str], said: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    folder = folder_with(tiny_checkpoint, tmp_path / "in", scheme, tensors)
    made = importers.import_model(folder, tmp_path / "out")
    (note,) = made.notes
    assert note.startswith(f"its kv_cache_scheme {said} is left out: Zeropoint keeps the key-value cache in")
    assert artifact.open(tmp_path / "out").card["notes"] == [note]


def test_the_command_prints_the_note(
    tiny_checkpoint: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = folder_with(tiny_checkpoint, tmp_path / "in", FP8, SCALES)
    assert main(["import", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "note: its kv_cache_scheme (8 bits, float) is left out" in " ".join(
        capsys.readouterr().out.split()
    )


def test_no_scheme_no_note(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tiny_checkpoint, tmp_path / "in", None, [])
    assert importers.import_model(folder, tmp_path / "out").notes == ()


def test_tensors_without_a_place_are_told(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = folder_with(tiny_checkpoint, tmp_path / "in", None, [SCALES[0], "score.weight"])
    (note,) = importers.import_model(folder, tmp_path / "out").notes
    assert "holds 2 tensors" in note
    assert f"no place, and which are left out: {SCALES[0]}, score.weight" in note
