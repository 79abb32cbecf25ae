"""The 2-D `[out, in]` view of each weight that can be quantized, found by type over a meta model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Kind = Literal["linear", "conv1d", "embedding", "lm_head", "expert"]


@dataclass(frozen=True, slots=True)
class LayerView:
    """One quantizable weight.

    `name` is the parameter's name, plus `.3` for the fourth expert of a stacked 3-D parameter;
    `module` is the path of the module that owns `parameter`; `expert` is the index in it;
    `transposed` says that the module stores `[in, out]` (Conv1D, some experts).
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


def layer_views(
    model: torch.nn.Module, read: Callable[[str], torch.Tensor]
) -> tuple[list[LayerView], list[Kept]]:
    """Views of every quantizable weight in model order, and every other parameter with the reason."""
    raise NotImplementedError
