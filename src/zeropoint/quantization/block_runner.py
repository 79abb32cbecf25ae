"""Runs of single transformer blocks, so that only the weights of one block are in memory.

There is no table of architectures. Each block's `forward` is first replaced by a recorder that returns its input. One
pass through the model's own code, without any block's weights, then records the first block's input and the other
arguments (masks, rotary tables) of each block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call

from zeropoint.errors import UnsupportedError, is_out_of_memory
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.product_precision import bfloat16_layers

#: Tokens per batch: enough for efficient matrix products, few enough that activations stay in the cache (with 4096
#: tokens per batch, a token takes 1.5 times as long).
BATCH_TOKENS = 1024

Arguments = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The other arguments `(args, kwargs)` of a block, beside the hidden states."""


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """The state between two blocks: the next block's input, float32 `[windows, length, width]` per batch.

    - `done`: the number of finished blocks;
    - `hidden`: the quantized model's hidden states;
    - `exact`: the float model's hidden states, empty if no step needs the float model.

    Both lists are empty before the first and after the last block.
    """

    done: int = 0
    hidden: list[torch.Tensor] = field(default_factory=list)
    exact: list[torch.Tensor] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A transformer block whose float32 weights are in memory.

    - `number`: the block's number in the model;
    - `path`, `module`: its module path in the model, and the torch module;
    - `arguments`: number of windows in a batch -> the block's other arguments for such a batch.
    """

    number: int
    path: str
    module: torch.nn.Module
    arguments: Mapping[int, Arguments]

    def run(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the block's output for one batch `[windows, length, width]`, without gradients."""
        with torch.no_grad():
            return self.run_with({}, hidden)

    def run_in_bfloat16(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the same as `run`, with the block's layers in bfloat16 where the CPU multiplies it natively."""
        with bfloat16_layers():
            return self.run(hidden)

    def run_with(self, parameters: dict[str, torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
        """Return the block's output for one batch with some of its parameters replaced; gradients flow to them."""
        args, kwargs = self.arguments[len(hidden)]
        out = functional_call(self.module, parameters, (hidden, *args), dict(kwargs))
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result


class BlockRunner:
    """The blocks of a model, run one at a time on windows of tokens `[windows, length]`.

    The windows are split into batches of at least one window, and of about `batch_tokens` tokens (or `BATCH_TOKENS`).
    """

    def __init__(self, model: FilledModel, tokens: torch.Tensor, *, batch_tokens: int | None = None) -> None:
        self.model, self.tokens = model, tokens
        size = max(1, (batch_tokens or BATCH_TOKENS) // tokens.shape[1])
        self._batches = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        self._arguments: dict[int, list[Arguments]] = {}
        self._wrap = False  # whether the model expects its blocks to return a tuple

    def start(self) -> list[torch.Tensor]:
        """Return the first block's input `[windows, length, width]` for each batch, from the current embedding.

        The parameters of `FilledModel.outside` must be filled. Raises `UnsupportedError` if the model's code does not
        run with recorders in place of its blocks.
        """
        self._arguments.clear()
        failure: Exception | None = None
        for wrap in (False, True):  # blocks return the hidden states alone, or first in a tuple
            try:
                self._wrap = wrap
                self._pass(self._batches[0][:1])  # also records the arguments for a batch of one window
                return [self._pass(ids) for ids in self._batches]
            except Exception as cause:  # the model's own code can raise anything
                if is_out_of_memory(cause):
                    raise
                failure = failure or cause
        raise UnsupportedError(f"this model cannot be run block by block ({failure})") from failure

    @contextmanager
    def block(self, number: int) -> Iterator[Block]:
        """Yield block `number` with its weights in memory, and free them afterwards; `start` must have run."""
        path = self.model.blocks[number]
        arguments = {windows: blocks[number] for windows, blocks in self._arguments.items()}
        with self.model.filled(self.model.names(f"{path}.")):
            yield Block(number, path, self.model.module.get_submodule(path), arguments)

    def logits(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        """Return the model's logits `[windows, length, vocabulary]` for one batch, from the last block's output.

        All parameters outside the blocks must be filled, those of the input embedding with any values.
        """
        with self._recorded(lambda *args, **kwargs: (hidden,) if self._wrap else hidden):
            logits: torch.Tensor = self.model.module(input_ids=self._batches[batch], use_cache=False).logits
        return logits

    def _pass(self, ids: torch.Tensor) -> torch.Tensor:
        """Run the model with recorders in place of its blocks; return the first block's input.

        The blocks' other arguments are stored per batch size. Raises `ValueError` if they differ between two batches of
        the same size, or if the blocks do not simply follow each other.
        """
        arguments: list[Arguments] = []
        inputs: list[torch.Tensor] = []

        def record(*args: Any, **kwargs: Any) -> Any:
            """Record a block's arguments, and return the hidden states unchanged."""
            kwargs_left = dict(kwargs)
            hidden = args[0] if args else kwargs_left.pop("hidden_states")
            if hidden.shape[:2] != ids.shape:
                raise ValueError("its blocks pass on something other than hidden states")
            inputs.append(hidden)
            arguments.append((args[1:], kwargs_left))
            return (hidden,) if self._wrap else hidden

        with self._recorded(record):
            out = self.model.decoder(ids)
        if len(inputs) != len(self.model.blocks) or out[0].shape[:2] != ids.shape:
            raise ValueError("its blocks do not run one after the other")
        first_arguments = self._arguments.setdefault(len(ids), arguments)
        if first_arguments is not arguments and not _same(first_arguments, arguments):
            raise ValueError("its blocks take arguments that depend on the tokens, beside the hidden states")
        return inputs[0]

    @contextmanager
    def _recorded(self, record: Any) -> Iterator[None]:
        """Replace each block's `forward` by `record` inside the context."""
        blocks = [self.model.module.get_submodule(path) for path in self.model.blocks]
        for block in blocks:
            block.forward = record
        try:
            yield
        finally:
            for block in blocks:
                del block.forward  # restores the class's method


def _same(first: Any, second: Any) -> bool:
    """Return whether two arguments have the same structure and equal tensors; other values need only equal types."""
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return isinstance(second, type(first))
