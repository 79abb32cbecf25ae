"""`StreamedModel`: a checkpoint's logits on a text, with the weights of one transformer block in memory at a time.

The hidden states of all windows pass through one block, then the next block is read from disk. Blocks run on one window
at a time, as `TorchRunner.logits` does, so the logits have the same bits. The hidden states are kept in a file from
time to time (`hidden_states.py`), from which an interrupted run continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

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
from zeropoint.values.arrays import Floats


class StreamedModel:
    """The logits of `checkpoint` in a dtype (`auto`: its own) on the token windows of a text.

    `run` first computes the last block's output; then `logits` needs only the output head in memory. Raises
    `UnsupportedError` if the model's code cannot be run block by block.
    """

    def __init__(self, checkpoint: Checkpoint, windows: Windows, dtype: str) -> None:
        self.dtype = checkpoint.own_dtype() if dtype == "auto" else getattr(torch, dtype)
        self._windows = windows
        self._tokens = torch.from_numpy(windows.tokens)
        self._model = FilledModel(checkpoint, self.dtype, hooked=False)
        self._runner = BlockRunner(self._model, self._tokens, batch_tokens=1)
        self._index = {window.tobytes(): i for i, window in enumerate(windows.tokens)}
        self._states: list[torch.Tensor] = []
        self._head_inputs: dict[int, torch.Tensor] = {}
        self._has_head = False
        self._is_plain = False  # whether the logits are the output head's product and nothing more

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
        head = self._model.module.get_output_embeddings()
        inputs: list[torch.Tensor] = []
        with torch.inference_mode(), fast_products(), _input_hook(head, inputs):
            logits = self._runner.logits(window, self._states[window])
            if self.dtype == torch.float32 and window not in self._head_inputs and inputs:
                self._record(window, inputs, logits)
        result: Floats = logits[0].float().numpy()
        return result

    def head_inputs(self) -> tuple[str, Floats] | None:
        """Return the output head's parameter name and its inputs float32 `[windows, length, width]` on all windows.

        None if the logits are not exactly the product of the two, or before `logits` was called for each window.
        """
        if not self._is_plain or len(self._head_inputs) != len(self._states):
            return None
        head = self._model.module.get_output_embeddings()
        name = next(name for name, module in self._model.module.named_modules() if module is head)
        return f"{name}.weight", torch.cat([self._head_inputs[i] for i in range(len(self._states))]).numpy()

    def _record(self, window: int, inputs: list[torch.Tensor], logits: torch.Tensor) -> None:
        """Save the output head's input on a window, if the logits are the product of input and head."""
        head = self._model.module.get_output_embeddings()
        if window == 0:
            product = torch.nn.functional.linear(inputs[0], head.weight)
            self._is_plain = len(inputs) == 1 and torch.equal(product, logits)
        if self._is_plain:
            self._head_inputs[window] = inputs[0]

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


@contextmanager
def _input_hook(module: torch.nn.Module | None, inputs: list[torch.Tensor]) -> Iterator[None]:
    """Append each input of a module inside the context to `inputs`; nothing without a module."""
    if module is None:
        yield
        return
    handle = module.register_forward_pre_hook(lambda _module, args: inputs.append(args[0].clone()))
    try:
        yield
    finally:
        handle.remove()
