"""`StreamedModel`: a checkpoint's logits on a text, with the weights of one transformer block in memory at a time.

The hidden states of all windows pass through one block, then the next block is read from disk. Blocks run on one window
at a time, as `TorchRunner.logits` does, so the logits have the same bits. The hidden states are kept in a file from
time to time (`hidden_states.py`), from which an interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.checkpoint import Checkpoint
from zeropoint.evaluate.quality.windows import Windows
from zeropoint.evaluate.worker.hidden_states import HiddenStates
from zeropoint.machine.heap import release
from zeropoint.quantization.block_runner import BlockRunner
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.runtime.torch_engine.emulated import fast_products
from zeropoint.runtime.torch_engine.recorder import Recorder
from zeropoint.values.arrays import Floats


class StreamedModel:
    """The logits of `checkpoint` in `dtype` on the token windows of a text.

    `run` first computes the last block's output; then `logits` needs only the output head in memory. Raises
    `UnsupportedError` if the model's code cannot be run block by block.
    """

    def __init__(self, checkpoint: Checkpoint, windows: Windows, dtype: torch.dtype) -> None:
        self.dtype, self._checkpoint = dtype, checkpoint
        self._tokens = torch.from_numpy(windows.tokens)
        self._model = FilledModel(checkpoint, self.dtype, hooked=False)
        self._runner = BlockRunner(self._model, self._tokens, batch_tokens=1)
        self._index = {window.tobytes(): i for i, window in enumerate(windows.tokens)}
        self._states: list[torch.Tensor] = []
        self._has_head = False

    def run(self, kept: HiddenStates, progress: Callable[[float], None]) -> None:
        """Compute the last block's output on all windows, from the states in `kept` on."""
        with torch.inference_mode(), fast_products():
            start = self._first_inputs()  # also records the blocks' masks and rotary tables
            done, states = kept.read() or (0, start)
            del start
            blocks = len(self._model.blocks)
            for number in range(done, blocks):
                with self._runner.block(number) as block:
                    for i in range(len(states)):
                        states[i] = block.run(states[i])
                        progress((number + (i + 1) / len(states)) / blocks)
                kept.write(number + 1, states, is_last=number + 1 == blocks)
        self._states = states
        release()

    def logits(self, tokens: NDArray[np.int64]) -> Floats:
        """Return the logits of one of the windows, float32 `[length, vocabulary]`. Raises `KeyError` for others."""
        window = self._index[tokens.tobytes()]
        if not self._has_head:
            self._fill_head()
        with torch.inference_mode(), fast_products():
            logits: Floats = self._runner.logits(window, self._states[window])[0].float().numpy()
        return logits

    def recorder(self) -> Recorder | None:
        """Return this model as one that saves its output head's inputs; None in other dtypes, or without a head."""
        module = self._model.module
        head = module.get_output_embeddings()
        if head is None or self.dtype != torch.float32:
            return None
        name = next(name for name, each in module.named_modules() if each is head)
        stored = self._checkpoint.stored_name(f"{name}.weight")
        return None if stored is None else Recorder(self.logits, head, lambda: iter([(stored, head.weight)]))

    def _first_inputs(self) -> list[torch.Tensor]:
        """Return the first block's input for each window."""
        self._model.fill_outside(self._tokens)
        try:
            return self._runner.start()
        finally:
            self._model.drop(self._model.outside())

    def _fill_head(self) -> None:
        """Read the parameters outside the blocks, with zeros for the input embedding: `logits` looks no token up."""
        table = self._model.embedding()
        inside = tuple(f"{path}." for path in self._model.blocks)
        self._model.fill([n for n in self._model.names("") if not n.startswith(inside) and n != table])
        self._model.empty_embedding()
        self._has_head = True
