"""The last product of a model alone: what a text's logits are made of is a hundred times smaller than the logits.

A reference that is asked for the same text again and again, by every gate on a model, need not be run again: the inputs
of its output head are kept, and the head makes the very same logits of them, bit for bit, on the same machine with as
many threads. Reading them wants torch alone, without transformers, whose import takes as long as the products.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.files.shards import shard_files

Floats = NDArray[np.float32]


class Head:
    """Logits of the windows whose inputs `[windows, tokens, width]` were remembered."""

    def __init__(self, weight: torch.Tensor, inputs: Floats) -> None:
        self._weight, self._inputs = weight, inputs

    @classmethod
    def open(cls, path: str | Path, name: str, inputs: Floats, *, threads: int) -> Head:
        """`name`: the head's tensor. Raises `CheckpointError` where the checkpoint lacks it."""
        torch.set_num_threads(threads)
        for file in map(TensorFile, shard_files(Path(path), CheckpointError)):
            if name in file.names():
                return cls(read_weight(file, name), inputs)
        raise CheckpointError(f"{path} has no tensor {name}")

    @torch.inference_mode()
    def window(self, index: int) -> Floats:
        """float32 `[tokens, vocabulary]`."""
        x = torch.tensor(self._inputs[index : index + 1])  # aligned as the model's own
        return torch.nn.functional.linear(x, self._weight)[0].numpy()


def read_weight(file: TensorFile, name: str) -> torch.Tensor:
    """In float32, aligned as torch's own are."""
    return torch.tensor(file.read(name).astype(np.float32))
