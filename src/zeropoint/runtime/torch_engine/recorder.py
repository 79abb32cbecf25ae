"""`Recorder`: a model that saves the inputs of its output head, from which `head.py` recomputes the logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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

Logits = Callable[[NDArray[np.int64]], Floats]
"""Returns a model's logits `[T, vocabulary]` for tokens `[T]`."""

Weights = Callable[[], Iterator[tuple[str, torch.Tensor]]]
"""Yields the tensors of a checkpoint that may be the output head's weight, in float32, each with its stored name."""


class Recorder:
    """A model in float32 that saves the inputs of its output head, float32 `[windows, tokens, width]`.

    `head` is the head's module, which runs when `logits` is called; `weights` its possible weights.
    """

    def __init__(self, logits: Logits, head: torch.nn.Module, weights: Weights) -> None:
        self._logits, self._head, self._weights = logits, head, weights
        self._inputs: list[torch.Tensor] = []
        self._name: str | None = None

    @classmethod
    def of(cls, runner: Runner, path: str | Path) -> Recorder | None:
        """Return a recorder of a runner of the checkpoint `path`.

        Return None if the model is not run by transformers in float32, or has no output head.
        """
        if not isinstance(runner, TorchRunner) or runner.model.dtype != torch.float32:
            return None
        head = runner.model.get_output_embeddings()
        return None if head is None else cls(runner.logits, head, lambda: _stored(runner.model, head, path))

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        """Return the model's logits `[T, vocabulary]` for tokens `[T]`, and save the inputs of the head."""
        head_inputs: list[torch.Tensor] = []
        hook = self._head.register_forward_pre_hook(lambda _module, args: head_inputs.append(args[0].clone()))
        try:
            logits = self._logits(tokens)
        finally:
            hook.remove()
        if not self._inputs:
            self._name = self._replayable(head_inputs, logits)
        self._inputs += head_inputs
        return logits

    def remembered(self) -> tuple[str, Floats] | None:
        """Return the name of the head's tensor in the checkpoint and its inputs.

        Return None if the logits are not exactly the product of the two, or if the windows differ in length.
        """
        if self._name is None or len({x.shape for x in self._inputs}) != 1:
            return None
        return self._name, torch.cat(self._inputs).numpy()

    def _replayable(self, inputs: list[torch.Tensor], logits: Floats) -> str | None:
        """Return the name of the stored tensor whose product with `inputs` is exactly `logits`, or None.

        There is no such tensor if the model scales or caps its logits, or if the head has a bias.
        """
        for name, weight in self._weights() if len(inputs) == 1 else ():
            if np.array_equal(Head(weight, inputs[0].numpy()).window(0), logits):
                return name
        return None


def _stored(
    model: torch.nn.Module, head: torch.nn.Module, path: str | Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the stored tensors that have a name of the head's weight in the model."""
    weight = getattr(head, "weight", None)
    parameters = model.named_parameters(remove_duplicate=False)
    names = {str(name) for name, parameter in parameters if parameter is weight}
    for file in map(TensorFile, shard_files(Path(path), CheckpointError)):
        for name in names & set(file.names()):
            yield name, read_weight(file, name)
