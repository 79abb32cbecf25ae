"""A model without weights, into which parameters are read one block (or any other set) at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zeropoint.checkpoint import Checkpoint
from zeropoint.checkpoint.architecture import empty_model
from zeropoint.machine.heap import trim


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

    @contextmanager
    def filled(self, names: list[str]) -> Iterator[None]:
        """Read parameters into the model, and free their memory at the end of the context."""
        self.fill(names)
        try:
            yield
        finally:
            self.drop(names)

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
