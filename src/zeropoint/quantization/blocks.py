"""Run a model block by block: a block holds weights only while it runs, whatever the size of the model.

There is no table of architectures. Each block's `forward` is first replaced by a recorder that passes its input on,
so that one pass through the model's own code, with no block's weights in memory, says what the first block is given
and which other arguments (masks, rotary tables) each block is called with.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.func import functional_call

from zeropoint.checkpoint import Checkpoint
from zeropoint.checkpoint.architecture import empty_model
from zeropoint.errors import UnsupportedError
from zeropoint.machine.heap import trim

#: Tokens that run through a block at once: enough to keep the matrix products busy, few enough for what lies between
#: two of them to stay in the cache (4096 take 1.5 times as long each).
BATCH_TOKENS = 1024


class FilledModel:
    """A model without weights, `module`, to be filled from the checkpoint a part at a time, in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = copy.deepcopy(checkpoint.config)
        config._experts_implementation = "eager"  # one call per expert, which can be observed
        self.module = empty_model(config)
        self.blocks = checkpoint.blocks()
        self._checkpoint = checkpoint
        self._names = [info.name for info in checkpoint.parameters()]

    def names(self, prefix: str) -> list[str]:
        return [name for name in self._names if name.startswith(prefix)]

    def outside(self) -> list[str]:
        """Everything the decoder needs around its blocks; not the output head."""
        inside = f"{self.module.base_model_prefix}."
        return [n for n in self.names(inside) if not any(n.startswith(f"{path}.") for path in self.blocks)]

    def fill(self, names: list[str]) -> None:
        for name in names:
            self.set(name, self._checkpoint.read(name))

    def drop(self, names: list[str]) -> None:
        for name in names:
            self.set(name, None)
        trim()

    def set(self, name: str, value: torch.Tensor | None) -> None:
        """Give a parameter or buffer a value, or its memory back."""
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        if leaf in owner._buffers:
            if value is not None:
                owner._buffers[leaf] = value.to(getattr(owner, leaf).dtype)
            return
        new = getattr(owner, leaf).detach().to("meta") if value is None else value.float()
        owner._parameters[leaf] = torch.nn.Parameter(new, requires_grad=False)

    def decoder(self, ids: torch.Tensor) -> Any:
        """Run all but the output head."""
        base: Any = getattr(self.module, str(self.module.base_model_prefix), self.module)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return base(input_ids=ids, use_cache=False)


@dataclass(slots=True)
class _Calls:
    """What a model gives its blocks beside the hidden states, for one batch size: `(args, kwargs)` per block."""

    blocks: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = field(default_factory=list)


class BlockRunner:
    """The blocks of a model over windows of tokens `[windows, length]`."""

    def __init__(self, model: FilledModel, tokens: torch.Tensor) -> None:
        self.model = model
        size = max(1, BATCH_TOKENS // tokens.shape[1])
        self._batches = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        self._calls: dict[int, _Calls] = {}

    def start(self) -> list[torch.Tensor]:
        """The first block's input for each batch `[windows, length, width]`, from the embedding filled in now.

        Raises `UnsupportedError` when the model's code cannot be led past its blocks.
        """
        self._calls.clear()
        failure: Exception | None = None
        for wrap in (False, True):  # a block gives its hidden states alone, or first in a tuple
            try:
                self._pass(self._batches[0][:1], wrap)  # so that a single window can be run too
                return [self._pass(ids, wrap) for ids in self._batches]
            except Exception as cause:  # the model's own code: anything can happen
                failure = failure or cause
        raise UnsupportedError(f"this model cannot be run block by block ({failure})") from failure

    def run(self, index: int, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Block number `index`, in the shape of `block`, on one batch."""
        with torch.no_grad():
            return self.run_with(index, block, {}, hidden)

    def run_with(
        self, index: int, block: torch.nn.Module, parameters: dict[str, torch.Tensor], hidden: torch.Tensor
    ) -> torch.Tensor:
        """The block on one batch with some of its parameters replaced, through which gradients flow."""
        args, kwargs = self._calls[len(hidden)].blocks[index]
        out = functional_call(block, parameters, (hidden, *args), dict(kwargs))
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def _pass(self, ids: torch.Tensor, wrap: bool) -> torch.Tensor:
        """The first block's input; the calls are recorded, and compared with those of a batch of the same size."""
        calls, inputs = _Calls(), []

        def record(*args: Any, **kwargs: Any) -> Any:
            given = dict(kwargs)
            hidden = args[0] if args else given.pop("hidden_states")
            if hidden.shape[:2] != ids.shape:
                raise ValueError("its blocks hand on something else than hidden states")
            inputs.append(hidden)
            calls.blocks.append((args[1:], given))
            return (hidden,) if wrap else hidden

        with self._recorded(record):
            out = self.model.decoder(ids)
        if len(inputs) != len(self.model.blocks) or out[0].shape[:2] != ids.shape:
            raise ValueError("its blocks do not follow each other")
        known = self._calls.setdefault(len(ids), calls)
        if known is not calls and not _same(known.blocks, calls.blocks):
            raise ValueError("its blocks are told more of the tokens than the hidden states")
        first: torch.Tensor = inputs[0]
        return first

    @contextmanager
    def _recorded(self, record: Any) -> Iterator[None]:
        blocks = [self.model.module.get_submodule(path) for path in self.model.blocks]
        for block in blocks:
            block.forward = record
        try:
            yield
        finally:
            for block in blocks:
                del block.forward  # the class's own again


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[key], second[key]) for key in first)
    return isinstance(second, type(first))
