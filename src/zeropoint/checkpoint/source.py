"""Open a source model without loading it: names, shapes and one tensor at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class ParameterInfo:
    """One parameter or persistent buffer of the Hugging Face model.

    `tied_to` names the parameter that this one shares its tensor with (read and stored once).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    tied_to: str | None = None
    is_buffer: bool = False


class Checkpoint:
    """A source model. `model` is the Hugging Face model on the meta device: shapes, no data."""

    path: Path
    name: str
    config: Any
    model_type: str
    model: torch.nn.Module

    def parameters(self) -> list[ParameterInfo]:
        """Every parameter and persistent buffer, in the model's order; tied ones say so."""
        raise NotImplementedError

    def read(self, name: str) -> torch.Tensor:
        """One parameter in the checkpoint's own dtype."""
        raise NotImplementedError

    def source_digest(self) -> str:
        """sha256 of the weight files (name and bytes of each, in name order), as hex."""
        raise NotImplementedError

    def blocks(self) -> list[str]:
        """Module paths of the decoder blocks, in order (`model.layers.0`, ...)."""
        raise NotImplementedError


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, allow_remote_code: bool = False
) -> Checkpoint:
    """Open a local folder, a GGUF file or a hub name. Reads headers only."""
    raise NotImplementedError
