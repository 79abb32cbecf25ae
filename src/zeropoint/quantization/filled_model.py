"""A model without weights, into which parameters are read one block (or any other set) at a time."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from zeropoint.checkpoint import Checkpoint
from zeropoint.checkpoint.architecture import empty_model
from zeropoint.machine.heap import trim
from zeropoint.values.qtensor import Coded

#: Rows of an embedding that are read or dequantized at once.
ROWS = 4096


class FilledModel:
    """A model (`module`) without weights, whose parameters are read from the checkpoint on demand, in `dtype`.

    `hooked`: experts are computed one product each, which a hook can observe, and not as the model's own code does.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, *, hooked: bool = True
    ) -> None:
        config = copy.deepcopy(checkpoint.config)
        if hooked:
            config._experts_implementation = "eager"
        self.module = empty_model(config)
        self.blocks = checkpoint.blocks()
        self.dtype = dtype
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

    def fill_outside(self, ids: torch.Tensor) -> None:
        """Read the parameters of `outside`; of the input embedding only the rows of `ids`, which saves memory."""
        table = self.embedding()
        self.fill([name for name in self.outside() if name != table])
        if table is not None:
            self.fill_embedding(table, ids)

    def fill_embedding(self, name: str, ids: torch.Tensor, weight: Coded | None = None) -> None:
        """Read those rows of the embedding `name` that the tokens `ids` use, from `weight` or else the checkpoint.

        The other rows are zero and take no memory.
        """
        shape = tuple(self.module.get_parameter(name).shape)
        # numpy leaves pages of zeros to the system until they are written; torch writes them
        words = np.zeros(shape, np.int32 if self.dtype.itemsize == 4 else np.int16)
        table, used = torch.from_numpy(words).view(self.dtype), torch.from_numpy(np.unique(ids.numpy()))
        values = self._checkpoint.read(name) if weight is None else None
        for start in range(0, shape[0], ROWS):
            rows = used[(used >= start) & (used < start + ROWS)]
            if values is not None:
                table[rows] = values[rows].to(self.dtype)
            elif weight is not None and len(rows):
                piece = torch.from_numpy(weight.rows(start, min(start + ROWS, shape[0])).dequantize())
                table[rows] = piece[rows - start].to(self.dtype)
        self.set(name, table)

    def empty_embedding(self) -> None:
        """Set the input embedding to zeros that take no memory, for runs that do not look tokens up."""
        if (name := self.embedding()) is not None:
            shape = self.module.get_parameter(name).shape
            self.set(name, torch.zeros((), dtype=self.dtype).expand(shape))

    def embedding(self) -> str | None:
        """Return the name of the matrix in which the model looks tokens up; None if it has none of that kind."""
        try:
            table = self.module.get_input_embeddings()
        except NotImplementedError:
            return None
        names = [f"{path}.weight" for path, module in self.module.named_modules() if module is table]
        shape = (self.module.config.get_text_config().vocab_size,)
        matches = [name for name in names if name in self._names and table.weight.shape[:1] == shape]
        return matches[0] if matches else None

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
        """Set a parameter (as `dtype`) or buffer; None frees a parameter's memory and leaves a buffer as it is."""
        path, _, leaf = name.rpartition(".")
        owner = self.module.get_submodule(path)
        if leaf in owner._buffers:
            if value is not None:
                owner._buffers[leaf] = value.to(getattr(owner, leaf).dtype)
            return
        new = getattr(owner, leaf).detach().to("meta") if value is None else value.to(self.dtype)
        owner._parameters[leaf] = torch.nn.Parameter(new, requires_grad=False)

    def decoder(self, ids: torch.Tensor) -> Any:
        """Run the model on token ids `[windows, length]` without the output head; return the model's own output."""
        base: Any = getattr(self.module, str(self.module.base_model_prefix), self.module)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return base(input_ids=ids, use_cache=False)
