"""`Head`: the logits of a model computed from saved inputs of its output head, without running the model again.

Every gate compares with the same float32 reference model on the same text. The inputs of its output head are a hundred
times smaller than the logits, so they are saved (`recorder.py`), and this file recomputes the logits: bit for bit the
same on the same machine with as many threads. Only torch is imported, since importing transformers takes as long as the
products.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from zeropoint.errors import CheckpointError
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.files.shards import shard_files
from zeropoint.values.arrays import Floats


class Head:
    """An output head and its saved inputs, float32 `[windows, tokens, width]`."""

    def __init__(self, weight: torch.Tensor, inputs: Floats) -> None:
        self._weight, self._inputs = weight, inputs

    @classmethod
    def open(cls, path: str | Path, name: str, inputs: Floats, *, threads: int) -> Head:
        """Read the head's tensor `name` from the checkpoint folder. Raises `CheckpointError` if it is missing."""
        torch.set_num_threads(threads)
        for file in map(TensorFile, shard_files(Path(path), CheckpointError)):
            if name in file.names():
                return cls(read_weight(file, name), inputs)
        raise CheckpointError(f"{path} has no tensor {name}")

    @torch.inference_mode()
    def window(self, index: int) -> Floats:
        """Return the logits of one window, float32 `[tokens, vocabulary]`."""
        # a copy, aligned like the model's own tensors: the product's bits depend on the alignment
        x = torch.tensor(self._inputs[index : index + 1])
        return torch.nn.functional.linear(x, self._weight)[0].numpy()


def read_weight(file: TensorFile, name: str) -> torch.Tensor:
    """Return a tensor in float32, in memory aligned by torch."""
    return torch.tensor(file.read(name).astype(np.float32))
