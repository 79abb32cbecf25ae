"""Views cover every matrix of every tiny model, in `[out, in]`, and everything else has a reason."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest
import torch
import transformers

from tests.support.tiny import ARCHITECTURES
from zeropoint.checkpoint import open_checkpoint

Tiny = Callable[[str], Path]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_viewed_or_kept_once(name: str, tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(name))
    views, kept = checkpoint.views()
    stored = {info.name: info.numel for info in checkpoint.parameters() if info.tied_to is None}
    seen: dict[str, int] = {}
    for view in views:
        seen[view.parameter] = seen.get(view.parameter, 0) + prod(view.shape)
    for item in kept:
        assert item.name not in seen
        assert item.reason
        seen[item.name] = prod(item.shape)
    assert seen == stored
    assert len({view.name for view in views}) == len(views)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_view_is_the_matrix_that_multiplies(name: str, tiny_checkpoint: Tiny) -> None:
    """`module(x) - bias == x @ view.T` for every linear and Conv1D, whatever way it stores its weight."""
    folder = tiny_checkpoint(name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for view in open_checkpoint(folder).views()[0]:
        matrix = view.read()
        assert (tuple(matrix.shape), matrix.dtype) == (view.shape, torch.float32)
        if view.kind in ("linear", "conv1d", "lm_head"):
            module = model.get_submodule(view.module)
            x = torch.randn(3, view.shape[1])
            bias = 0 if getattr(module, "bias", None) is None else module.bias
            torch.testing.assert_close(module(x) - bias, x @ matrix.T, rtol=1e-4, atol=1e-4)


def test_experts_are_viewed_one_by_one(tiny_checkpoint: Tiny) -> None:
    folder = tiny_checkpoint("mixtral")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    views = [view for view in open_checkpoint(folder).views()[0] if view.kind == "expert"]
    assert len(views) == 2 * 2 * 4
    view = next(v for v in views if v.name == "model.layers.1.mlp.experts.down_proj.3")
    assert (view.parameter, view.expert) == ("model.layers.1.mlp.experts.down_proj", 3)
    torch.testing.assert_close(view.read(), model.model.layers[1].mlp.experts.down_proj[3].detach())


def test_positions_are_kept_with_a_reason(tiny_checkpoint: Tiny) -> None:
    for name, table in (("gpt2", "transformer.wpe.weight"), ("opt", "model.decoder.embed_positions.weight")):
        kept = {item.name: item.reason for item in open_checkpoint(tiny_checkpoint(name)).views()[1]}
        assert "positions" in kept[table]
