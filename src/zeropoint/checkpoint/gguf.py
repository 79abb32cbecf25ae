"""GGUF files as sources of floats: each weight is dequantized as it is asked for.

`zeropoint.gguf.model` reads the file, header first and weights one at a time, for this and for importing alike.
"""

from __future__ import annotations

from pathlib import Path

from zeropoint.errors import CheckpointError
from zeropoint.gguf.model import GgufModel, is_gguf
from zeropoint.ggufile import first_parts


def find(path: Path) -> Path | None:
    """Return the GGUF file that `path` is, or that a folder without config.json holds; None when there is none.

    Of a model in several parts it is the first. Raises `CheckpointError` when a folder holds several models.
    """
    if path.is_file():
        return path
    if (path / "config.json").exists():
        return None
    files = first_parts(path.glob("*.gguf"))
    if len(files) > 1:
        raise CheckpointError(f"{path} holds {len(files)} GGUF files: give the path of one of them")
    return files[0] if files else None


def load(path: Path) -> GgufModel:
    """Return the model in a GGUF file. Raises `CheckpointError` for any other file, and for a damaged one."""
    if not is_gguf(path):
        raise CheckpointError(f"{path} is not a GGUF file: give a model folder, a .gguf file or a hub name")
    return GgufModel(path)
