"""Running a model one transformer block at a time, so that only the weights of the running block are in memory.

There is no table of architectures. Each block's `forward` is first replaced by a recorder that returns its input. One
pass through the model's own code, without any block's weights, then records the first block's input and the other
arguments (masks, rotary tables) of each block.
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

#: Tokens per batch: enough for efficient matrix products, few enough that activations stay in the cache (with 4096
#: tokens per batch, a token takes 1.5 times as long).
BATCH_TOKENS = 1024


class FilledModel:
    """A model (`module`) without weights, whose parameters are read from the checkpoint on demand, in float32."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = copy.deepcopy(checkpoint.config)
        config._experts_implementation = "eager"  # one product per expert, which a hook can observe
        self.module = empty_model(config)
        self.blocks = checkpoint.blocks()
        self._checkpoint = checkpoint
        self._names = [info.name for info in checkpoint.parameters()]

    def names(self, prefix: str) -> list[str]:
        """Return the names of all parameters and buffers that start with `prefix`."""
        return [name for name in self._names if name.startswith(prefix)]

    def outside(self) -> list[str]:
        """Return the names of the parameters outside the blocks, without the output head."""
        inside = f"{self.module.base_model_prefix}."
        return [n for n in self.names(inside) if not any(n.startswith(f"{path}.") for path in self.blocks)]

    def fill(self, names: list[str]) -> None:
        """Read parameters from the checkpoint into the model."""
        for name in names:
            self.set(name, self._checkpoint.read(name))

    def drop(self, names: list[str]) -> None:
        """Free the memory of parameters."""
        for name in names:
            self.set(name, None)
        trim()

    def set(self, name: str, value: torch.Tensor | None) -> None:
        """Set a parameter (as float32) or buffer; None frees a parameter's memory and leaves a buffer as it is."""
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        if leaf in owner._buffers:
            if value is not None:
                owner._buffers[leaf] = value.to(getattr(owner, leaf).dtype)
            return
        new = getattr(owner, leaf).detach().to("meta") if value is None else value.float()
        owner._parameters[leaf] = torch.nn.Parameter(new, requires_grad=False)

    def decoder(self, ids: torch.Tensor) -> Any:
        """Run the model on token ids `[windows, length]` without the output head; return the model's own output."""
        base: Any = getattr(self.module, str(self.module.base_model_prefix), self.module)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return base(input_ids=ids, use_cache=False)


@dataclass(slots=True)
class _Calls:
    """The other arguments `(args, kwargs)` of each block, beside the hidden states, for one batch size."""

    blocks: list[tuple[tuple[Any, ...], Mapping[str, Any]]] = field(default_factory=list)


class BlockRunner:
    """Runs of a model's blocks on windows of tokens `[windows, length]`, split into batches."""

    def __init__(self, model: FilledModel, tokens: torch.Tensor) -> None:
        self.model = model
        size = max(1, BATCH_TOKENS // tokens.shape[1])
        self._batches = [tokens[i : i + size] for i in range(0, len(tokens), size)]
        self._calls: dict[int, _Calls] = {}

    def start(self) -> list[torch.Tensor]:
        """Return the first block's input `[windows, length, width]` for each batch, from the current embedding.

        The parameters of `FilledModel.outside` must be filled. Raises `UnsupportedError` if the model's code does not
        run with recorders in place of its blocks.
        """
        self._calls.clear()
        failure: Exception | None = None
        for wrap in (False, True):  # blocks return the hidden states alone, or first in a tuple
            try:
                self._pass(self._batches[0][:1], wrap)  # also records the arguments for a batch of one window
                return [self._pass(ids, wrap) for ids in self._batches]
            except Exception as cause:  # the model's own code can raise anything
                failure = failure or cause
        raise UnsupportedError(f"this model cannot be run block by block ({failure})") from failure

    def run(self, index: int, block: torch.nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output of block number `index`, whose module is `block`, for one batch; without gradients."""
        with torch.no_grad():
            return self.run_with(index, block, {}, hidden)

    def run_with(
        self, index: int, block: torch.nn.Module, parameters: dict[str, torch.Tensor], hidden: torch.Tensor
    ) -> torch.Tensor:
        """Return the block's output for one batch with some of its parameters replaced; gradients flow to them."""
        args, kwargs = self._calls[len(hidden)].blocks[index]
        out = functional_call(block, parameters, (hidden, *args), dict(kwargs))
        result: torch.Tensor = out[0] if isinstance(out, tuple) else out
        return result

    def _pass(self, ids: torch.Tensor, wrap: bool) -> torch.Tensor:
        """Run the model with recorders in place of its blocks; return the first block's input.

        The blocks' other arguments are stored per batch size. Raises `ValueError` if they differ between two batches of
        the same size, or if the blocks do not simply follow each other. `wrap`: the recorder returns a tuple.
        """
        calls, inputs = _Calls(), []

        def record(*args: Any, **kwargs: Any) -> Any:
            kwargs_left = dict(kwargs)
            hidden = args[0] if args else kwargs_left.pop("hidden_states")
            if hidden.shape[:2] != ids.shape:
                raise ValueError("its blocks pass on something other than hidden states")
            inputs.append(hidden)
            calls.blocks.append((args[1:], kwargs_left))
            return (hidden,) if wrap else hidden

        with self._recorded(record):
            out = self.model.decoder(ids)
        if len(inputs) != len(self.model.blocks) or out[0].shape[:2] != ids.shape:
            raise ValueError("its blocks do not run one after the other")
        first_calls = self._calls.setdefault(len(ids), calls)
        if first_calls is not calls and not _same(first_calls.blocks, calls.blocks):
            raise ValueError("its blocks take arguments that depend on the tokens, beside the hidden states")
        first: torch.Tensor = inputs[0]
        return first

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
