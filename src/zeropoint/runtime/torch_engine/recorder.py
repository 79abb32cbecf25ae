"""`Recorder`: a runner that saves the inputs of the output head, from which `head.py` recomputes the logits."""

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
from zeropoint.values.arrays import Floats


class Recorder:
    """A runner of a checkpoint that saves the inputs of its output head, float32 `[windows, tokens, width]`."""

    def __init__(self, runner: TorchRunner, path: str | Path) -> None:
        self._runner, self._path = runner, path
        self._head: torch.nn.Module = runner.model.get_output_embeddings()
        self._inputs: list[torch.Tensor] = []
        self._name: str | None = None

    @classmethod
    def of(cls, runner: Runner, path: str | Path) -> Recorder | None:
        """Return a recorder; None if the model is not run by transformers in float32, or has no output head."""
        if not isinstance(runner, TorchRunner) or runner.model.dtype != torch.float32:
            return None
        return None if runner.model.get_output_embeddings() is None else cls(runner, path)

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        """Return the runner's logits `[T, vocabulary]` for tokens `[T]`, and save the inputs of the head."""
        head_inputs: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _module, args: head_inputs.append(args[0].clone()))
        try:
            logits = self._runner.logits(tokens)
        finally:
            hook.remove()
        if not self._inputs:
            self._name = self._replayable(head_inputs, logits)
        self._inputs += head_inputs
        return logits

    def remembered(self) -> tuple[str, Floats] | None:
        """Return the name of the head's tensor in the checkpoint and its inputs.

        None if the logits are not exactly the product of the two, or if the windows differ in length.
        """
        if self._name is None or len({x.shape for x in self._inputs}) != 1:
            return None
        return self._name, torch.cat(self._inputs).numpy()

    def _replayable(self, inputs: list[torch.Tensor], logits: Floats) -> str | None:
        """Return the name of the stored tensor whose product with `inputs` is exactly `logits`, or None.

        There is no such tensor if the model scales or caps its logits, or if the head has a bias.
        """
        weight = getattr(self._head, "weight", None)
        parameters = self._runner.model.named_parameters(remove_duplicate=False)
        names = {str(name) for name, parameter in parameters if parameter is weight}
        for file in map(TensorFile, shard_files(Path(self._path), CheckpointError)):
            for name in names & set(file.names()):
                head = Head(read_weight(file, name), inputs[0].numpy())
                if len(inputs) == 1 and np.array_equal(head.window(0), logits):
                    return name
        return None
