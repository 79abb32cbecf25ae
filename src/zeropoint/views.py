"""The 2-D `[out, in]` view of each quantizable weight of a model on the meta device.

There is no table of architectures. Module types identify the weights: `nn.Linear`, transformers' `Conv1D` (stored
transposed), the token embedding, the output head, and modules with stacked 3-D expert parameters. Every other parameter
is listed with the reason why it is kept in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from transformers.pytorch_utils import Conv1D

Kind = Literal["linear", "conv1d", "embedding", "lm_head", "expert"]
ReadParameter = Callable[[str], torch.Tensor]


@dataclass(frozen=True, slots=True)
class LayerView:
    """One quantizable weight.

    - `name`: the parameter's name, plus `.3` for the fourth expert of a stacked 3-D parameter;
    - `shape`: `(out, in)`;
    - `parameter`, `module`: the parameter's name, and the path of the module that owns it;
    - `transposed`: the module stores `[in, out]` (Conv1D, some experts);
    - `expert`: the index in a stacked parameter, else None;
    - `read()`: reads the weight from the checkpoint and returns it as float32 `[out, in]`.
    """

    name: str
    kind: Kind
    shape: tuple[int, int]
    parameter: str
    module: str
    transposed: bool
    expert: int | None
    read: Callable[[], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Kept:
    """A parameter without a view, kept in float, and the reason."""

    name: str
    shape: tuple[int, ...]
    reason: str


def layer_views(model: torch.nn.Module, read: ReadParameter) -> tuple[list[LayerView], list[Kept]]:
    """Return the views of all quantizable weights, and all other parameters, both in model order.

    `model` may be on the meta device; `read(name)` returns a parameter's data. A tied parameter appears under each of
    its names: the caller drops the aliases.
    """
    views: list[LayerView] = []
    kept: list[Kept] = []
    owners = dict(model.named_modules(remove_duplicate=False))
    special = _embedding_modules(model)
    for name, tensor in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        parameter_views = list(_views_of(name, leaf, path, owners[path], tensor, special, read))
        views += parameter_views
        if not parameter_views:
            kept.append(Kept(name, tuple(tensor.shape), _why_kept(leaf, owners[path], tensor)))
    return views, kept


def _embedding_modules(model: torch.nn.Module) -> dict[int, Kind]:
    """Map the `id` of the token embedding's and the output head's module to its kind."""
    kinds: dict[int, Kind] = {}
    for getter, kind in (("get_output_embeddings", "lm_head"), ("get_input_embeddings", "embedding")):
        try:
            module = getattr(model, getter)()
        except (AttributeError, NotImplementedError):
            continue
        if module is not None:
            kinds[id(module)] = kind  # type: ignore[assignment]
    return kinds


def _views_of(
    name: str,
    leaf: str,
    path: str,
    module: torch.nn.Module,
    tensor: torch.Tensor,
    special: dict[int, Kind],
    read: ReadParameter,
) -> Iterator[LayerView]:
    """Yield the views of one parameter: one of a matrix, one per expert of a stack, none of a kept parameter."""
    if leaf == "weight" and tensor.ndim == 2:
        kind = _kind(module, special)
        if kind is not None:
            rows, columns = tensor.shape
            transposed = kind == "conv1d"
            shape = (columns, rows) if transposed else (rows, columns)
            yield LayerView(
                name, kind, shape, name, path, transposed, None, _reader(read, name, transposed, None)
            )
    elif tensor.ndim == 3 and isinstance(getattr(module, "is_transposed", None), bool):
        # `is_transposed` of transformers' expert modules tells [experts, in, out] from [experts, out, in].
        transposed = bool(module.is_transposed)
        experts, rows, columns = tensor.shape
        shape = (columns, rows) if transposed else (rows, columns)
        for index in range(experts):
            yield LayerView(
                f"{name}.{index}", "expert", shape, name, path, transposed, index,
                _reader(read, name, transposed, index),
            )  # fmt: skip


def _kind(module: torch.nn.Module, special: dict[int, Kind]) -> Kind | None:
    """Return the kind of a module's weight, None if the weight is not quantizable."""
    if isinstance(module, Conv1D):
        return "conv1d"
    if isinstance(module, torch.nn.Embedding):
        return "embedding" if special.get(id(module)) == "embedding" else None
    if isinstance(module, torch.nn.Linear):
        return special.get(id(module), "linear")
    return None


def _reader(
    read: ReadParameter, name: str, transposed: bool, expert: int | None
) -> Callable[[], torch.Tensor]:
    """Return a function that reads a weight as float32 `[out, in]`."""

    def view() -> torch.Tensor:
        """Read the weight."""
        tensor = read(name) if expert is None else read(name)[expert]
        return (tensor.t() if transposed else tensor).to(torch.float32).contiguous()

    return view


def _why_kept(leaf: str, module: torch.nn.Module, tensor: torch.Tensor) -> str:
    """Return the reason why a parameter is kept in float."""
    if isinstance(module, torch.nn.Embedding):
        return "a learned table that is not the token embedding (positions): small and read once per token"
    if not tensor.is_floating_point():
        return "not floating point"
    if leaf == "bias" or leaf.endswith("_bias"):
        return "a bias: added in float"
    if tensor.ndim <= 1:
        return "a vector (norm weight or gate): no matrix product"
    if tensor.ndim == 2:
        return f"a matrix of {type(module).__name__}, which is not a linear layer, Conv1D or expert stack"
    return f"a {tensor.ndim}-D parameter of {type(module).__name__}, whose orientation is not known"
