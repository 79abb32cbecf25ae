"""A damaged GGUF file as a source to quantize; damaged files of every kind are in tests/test_damage.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.importers.test_importers import quantized
from zeropoint import artifact, exporters
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import CheckpointError


def test_a_damaged_gguf_source_is_not_given_to_transformers(tmp_path: Path) -> None:
    exporters.export(artifact.open(quantized("llama_tied", "int4", tmp_path)), "gguf", tmp_path / "m.gguf")
    (tmp_path / "m.gguf").write_bytes((tmp_path / "m.gguf").read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="truncated or was changed"):
        open_checkpoint(tmp_path / "m.gguf")
