"""The weights of views inside the torch module that holds them: read, overwritten, or replaced for one run.

`path` is the module path, in the model, of the module that is given: that of a transformer block, or "" for the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from zeropoint.values.qtensor import Coded
from zeropoint.views import LayerView


def owner_of(module: torch.nn.Module, path: str, view: LayerView) -> torch.nn.Module:
    """Return the submodule that holds a view's parameter."""
    return module.get_submodule(view.module.removeprefix(path).removeprefix("."))


def parameter_of(module: torch.nn.Module, path: str, view: LayerView) -> torch.Tensor:
    """Return the parameter that holds a view: its own, or the stack of all experts."""
    parameter: torch.Tensor = getattr(owner_of(module, path, view), view.parameter.rpartition(".")[2])
    return parameter.detach()


def weight_of(module: torch.nn.Module, path: str, view: LayerView) -> torch.Tensor:
    """Return a view's weight as `[out, in]` (no copy)."""
    parameter = parameter_of(module, path, view)
    weight = parameter if view.expert is None else parameter[view.expert]
    return weight.t() if view.transposed else weight


def overwrite(module: torch.nn.Module, path: str, view: LayerView, weight: Coded) -> None:
    """Overwrite a view's float weight with the dequantized `weight`."""
    weight_of(module, path, view).copy_(torch.from_numpy(weight.dequantize()))


def as_parameters(
    module: torch.nn.Module, path: str, views: Sequence[LayerView], weights: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return the parameters of `module`, by name, with the values `weights` (`[out, in]` by view name) of its views.

    Weights of experts are put into their stacked parameter; transposed views are transposed back.
    """
    plain: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for view in views:
        name = view.parameter.removeprefix(path).removeprefix(".")
        weight = weights[view.name].t() if view.transposed else weights[view.name]
        if view.expert is None:
            plain[name] = weight
        else:
            stacks.setdefault(name, list(module.get_parameter(name)))[view.expert] = weight
    return plain | {name: torch.stack(experts) for name, experts in stacks.items()}
