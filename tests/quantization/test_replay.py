"""A block run again without the parts that no longer change gives what the whole block gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.support.tiny import ARCHITECTURES
from zeropoint.checkpoint import open_checkpoint
from zeropoint.quantization.blocks import BlockRunner, FilledModel
from zeropoint.quantization.replay import Replay

Tiny = Callable[[str], Path]

#: What runs again beside the last layers of attention and MLP: Gemma 2 and BLOOM hand on more than their last layer's
#: output, OPT's MLP is no module of its own, experts and gates are no layers that a submodule could end in.
AGAIN = {
    "gemma2": {"q_proj", "k_proj", "v_proj"},
    "bloom": {"query_key_value", "dense_h_to_4h"},
    "opt": {"fc1"},
    "mixtral": {"experts"},
    "qwen2_moe": {"experts", "shared_expert_gate"},
}
LAST = {"o_proj", "down_proj", "c_proj", "dense", "fc2", "out_proj", "dense_4h_to_h"}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_passed_over_changes_nothing(name: str, tiny_checkpoint: Tiny) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint(name))
    model = FilledModel(checkpoint)
    runner = BlockRunner(model, torch.arange(3 * 64).reshape(3, 64))
    model.fill(model.outside())
    (hidden,) = runner.start()
    path = model.blocks[0]
    block = model.module.get_submodule(path)
    model.fill(model.names(f"{path}."))
    views = [view for view in checkpoint.views()[0] if view.module.startswith(f"{path}.")]
    replay = Replay(block, path, views, partial(runner.run, 0, block), hidden)
    calls: list[str] = []
    for inner, module in block.named_modules():
        module.register_forward_pre_hook(lambda _m, _i, inner=inner: calls.append(inner))
    for stage in replay.stages:
        inputs: list[torch.Tensor] = []

        def seen(view: str, given: torch.Tensor, wanted: str = stage.names[0]) -> None:
            if view == wanted:
                inputs.append(given.bfloat16().float())  # noqa: B023

        replay.again(0, hidden, seen)
        if replay.keeps(stage):
            replay.keep(stage, {0: inputs[0].bfloat16()})
    calls.clear()
    out = replay.finish(0, hidden)
    ran = set(calls)
    torch.testing.assert_close(out, runner.run(0, block, hidden), rtol=0.02, atol=0.02)
    modules = [view.module.removeprefix(f"{path}.") for view in views]
    assert {inner.rpartition(".")[2] for inner in modules if inner in ran} - LAST == AGAIN.get(name, set())
