"""The 2-D `[out, in]` view of each weight that can be quantized, found by type over a meta model.

There is no table of architectures: `nn.Linear`, transformers' `Conv1D` (stored transposed), the token embedding,
the output head, and the stacked 3-D parameters of expert modules are recognized by what they are. Everything
else is listed with the reason it is kept, so that no parameter is passed over in silence.
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

    `name` is the parameter's name, plus `.3` for the fourth expert of a stacked 3-D parameter;
    `module` is the path of the module that owns `parameter`; `expert` is the index in it;
    `transposed` says that the module stores `[in, out]` (Conv1D, some experts).
    `read()` gives a float32 `[out, in]` tensor, read from the checkpoint when called.
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
    """A parameter that no view covers, and why."""

    name: str
    shape: tuple[int, ...]
    reason: str


def layer_views(model: torch.nn.Module, read: ReadParameter) -> tuple[list[LayerView], list[Kept]]:
    """Views of every quantizable weight in model order, and every other parameter with the reason.

    `model` may be on the meta device; `read(name)` gives a parameter's data. A tied parameter appears under
    each of its names: the caller drops the aliases.
    """
    views: list[LayerView] = []
    kept: list[Kept] = []
    owners = dict(model.named_modules(remove_duplicate=False))
    special = _embedding_modules(model)
    for name, tensor in model.state_dict().items():
        path, _, leaf = name.rpartition(".")
        found = list(_views_of(name, leaf, path, owners[path], tensor, special, read))
        views += found
        if not found:
            kept.append(Kept(name, tuple(tensor.shape), _why_kept(leaf, owners[path], tensor)))
    return views, kept


def _embedding_modules(model: torch.nn.Module) -> dict[int, Kind]:
    """The token embedding and the output head, by identity."""
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
        # transformers' expert modules say themselves whether they store [experts, out, in] or [experts, in, out].
        transposed = bool(module.is_transposed)
        experts, rows, columns = tensor.shape
        shape = (columns, rows) if transposed else (rows, columns)
        for index in range(experts):
            yield LayerView(
                f"{name}.{index}", "expert", shape, name, path, transposed, index,
                _reader(read, name, transposed, index),
            )  # fmt: skip


def _kind(module: torch.nn.Module, special: dict[int, Kind]) -> Kind | None:
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
    def view() -> torch.Tensor:
        tensor = read(name) if expert is None else read(name)[expert]
        return (tensor.t() if transposed else tensor).to(torch.float32).contiguous()

    return view


def _why_kept(leaf: str, module: torch.nn.Module, tensor: torch.Tensor) -> str:
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
