"""What goes into a model's output head, remembered, so that `head.py` can make the logits again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.errors import CheckpointError
from zeropoint.files.safetensors_file import TensorFile
from zeropoint.files.shards import shard_files
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.torch_engine.head import Head, read_weight
from zeropoint.runtime.torch_engine.runner import TorchRunner

Floats = NDArray[np.float32]


class Recorder:
    """A checkpoint's runner that remembers what went into its head, `[windows, tokens, width]`."""

    def __init__(self, runner: TorchRunner, path: str | Path) -> None:
        self._runner, self._path = runner, path
        self._head: torch.nn.Module = runner.model.get_output_embeddings()
        self._inputs: list[torch.Tensor] = []
        self._name: str | None = None

    @classmethod
    def of(cls, runner: Runner, path: str | Path) -> Recorder | None:
        """None where nothing can be remembered: the model is not run by transformers in float32, or has no head."""
        if not isinstance(runner, TorchRunner) or runner.model.dtype != torch.float32:
            return None
        return None if runner.model.get_output_embeddings() is None else cls(runner, path)

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        """The runner's, `[T, vocabulary]` for `[T]`."""
        seen: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _module, args: seen.append(args[0].clone()))
        try:
            logits = self._runner.logits(tokens)
        finally:
            hook.remove()
        if not self._inputs:
            self._name = self._replayable(seen, logits)
        self._inputs += seen
        return logits

    def remembered(self) -> tuple[str, Floats] | None:
        """The head's tensor in the checkpoint, and its inputs; None where the head alone does not make the logits."""
        if self._name is None or len({x.shape for x in self._inputs}) != 1:
            return None
        return self._name, torch.cat(self._inputs).numpy()

    def _replayable(self, inputs: list[torch.Tensor], logits: Floats) -> str | None:
        """The stored tensor that makes these logits of these inputs: none where a model scales or caps them after the
        head, or the head has a bias or is made otherwise."""
        weight = getattr(self._head, "weight", None)
        parameters = self._runner.model.named_parameters(remove_duplicate=False)
        names = {str(name) for name, parameter in parameters if parameter is weight}
        for file in map(TensorFile, shard_files(Path(self._path), CheckpointError)):
            for name in names & set(file.names()):
                head = Head(read_weight(file, name), inputs[0].numpy())
                if len(inputs) == 1 and np.array_equal(head.window(0), logits):
                    return name
        return None
