"""The float model with hooks that observe the input and output of each product with a weight."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from zeropoint.checkpoint import Checkpoint
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.hooks import PRODUCTS
from zeropoint.quantization.module_weights import weight_of
from zeropoint.values.sensitivity import Group
from zeropoint.views import LayerView

Product = Callable[[str, torch.Tensor, torch.Tensor], None]
"""Called with the name of a view, its input (token ids for an embedding) and its output."""

_IN_BLOCK = re.compile(r"\.(\d+)\.")


class FloatModel:
    """The whole model in memory with frozen float32 weights; gradients flow through the activations only."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._filled = FilledModel(checkpoint)
        self._filled.fill([info.name for info in checkpoint.parameters()])
        self.module: Any = self._filled.module
        self.module.tie_weights()
        self.views = {view.name: view for view in checkpoint.views()[0]}
        self._blocks = self._filled.blocks
        head = self.module.get_output_embeddings()
        own = {view.module for view in self.views.values()}
        paths = {id(module): path for path, module in self.module.named_modules(remove_duplicate=False)}
        self._tied_head = head if head is not None and paths.get(id(head)) not in own else None

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits `[windows, length, vocabulary]` of token ids `[windows, length]`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out: torch.Tensor = self.module(input_ids=ids, use_cache=False).logits
        return out

    def weight(self, view: LayerView) -> torch.Tensor:
        """Return a view's weight as `[out, in]` (no copy)."""
        return weight_of(self.module, "", view)

    def modules_of(self, view: LayerView) -> list[torch.nn.Module]:
        """Return the modules that use a view's weight: none for an expert, two for a tied embedding."""
        if view.kind == "expert":
            return []
        modules = [self.module.get_submodule(view.module)]
        if view.kind == "embedding" and self._tied_head is not None:
            modules.append(self._tied_head)
        return modules

    @contextmanager
    def observed(self, on_product: Product) -> Iterator[None]:
        """Call `on_product` inside the context after every product with a view's weight."""
        handles = [
            module.register_forward_hook(lambda _m, inputs, out, name=name: on_product(name, inputs[0], out))
            for name, view in self.views.items()
            for module in self.modules_of(view)
        ]
        experts = {
            self.weight(view).data_ptr(): name for name, view in self.views.items() if view.kind == "expert"
        }
        try:
            with _ExpertProducts(experts, on_product):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def groups(self, ids: torch.Tensor) -> list[Group]:
        """Return groups of views that must share a format; `ids` `[windows, length]` are token ids to run on.

        Views share a format if modules of one parent module take the same tensor object, or if they are experts of one
        stacked parameter.
        """
        names_by_input: dict[tuple[Any, ...], list[str]] = {}
        inputs: list[torch.Tensor] = []  # keeps the tensors alive, so that no id() is used twice

        def on_product(name: str, layer_input: torch.Tensor, _out: torch.Tensor) -> None:
            """Note the view's first input and the parent of its module."""
            if any(name in names for names in names_by_input.values()):
                return
            inputs.append(layer_input)
            parent = self.views[name].module.rpartition(".")[0]
            names_by_input.setdefault((id(layer_input), parent), []).append(name)

        with torch.no_grad(), self.observed(on_product):
            self.logits(ids[:1])
        shared = {name: key for key, names in names_by_input.items() for name in names}
        joined: dict[Any, list[str]] = {}
        for name, view in self.views.items():
            key = view.parameter if view.kind == "expert" else shared.get(name, name)
            joined.setdefault(key, []).append(name)
        return [self._group(names) for names in joined.values()]

    def _group(self, names: list[str]) -> Group:
        """Return the group of these views, with its name, block number and kind."""
        views = [self.views[name] for name in names]
        parameters = sum(view.shape[0] * view.shape[1] for view in views)
        paths = [view.parameter.removesuffix(".weight") for view in views]
        kind = "+".join(dict.fromkeys(path.rpartition(".")[2] for path in paths))
        parent = paths[0].rpartition(".")[0]
        inside = any(paths[0].startswith(f"{block}.") for block in self._blocks)
        match = _IN_BLOCK.search(paths[0])
        block = int(match[1]) if inside and match else None
        return Group(f"{parent}.{kind}".lstrip("."), tuple(names), block, kind, parameters)


class _ExpertProducts(TorchFunctionMode):
    """Interceptor of products with an expert's slice of a stacked weight: experts have no modules to put hooks on."""

    def __init__(self, names: dict[int, str], on_product: Product) -> None:
        super().__init__()
        self._names = names
        self._on_product = on_product

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call `func`, pass a product with a known expert's weight to `on_product`, and return the result."""
        out = func(*args, **(kwargs or {}))
        if self._names and func in PRODUCTS:
            name = self._names.get(args[1].data_ptr())
            if name is not None:
                self._on_product(name, args[0], out)
        return out
