"""A block run again without the parts that no longer change gives what the whole block gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.tiny import ARCHITECTURES
from zeropoint.checkpoint import open_checkpoint
from zeropoint.quantization.block_pipeline import run_quantized_block
from zeropoint.quantization.block_runner import BlockRunner
from zeropoint.quantization.captures import capture_stage
from zeropoint.quantization.filled_model import FilledModel
from zeropoint.quantization.stages import StoredTensors, find_stages

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
    views = [view for view in checkpoint.views()[0] if view.module.startswith(f"{path}.")]
    stored: list[StoredTensors] = []
    calls: list[str] = []
    with runner.block(0) as block:
        for inner, module in block.module.named_modules():
            module.register_forward_pre_hook(lambda _m, _i, inner=inner: calls.append(inner))
        for stage in find_stages(block, views, hidden):
            stored += capture_stage(block, stage, (), [hidden], [], stored).stored
        last_layers = {
            tensors.skip.name for tensors in stored if tensors.outputs
        }  # computed by an earlier run
        calls.clear()
        (out,) = run_quantized_block(block, [hidden], stored)
        ran = set(calls)
        assert not {name.removesuffix(".weight").removeprefix(f"{path}.") for name in last_layers} & ran
        assert not any(tensors.outputs for tensors in stored)
        # The whole block runs in the same precision. Beside float32, the rounding of bfloat16 would count on some CPUs.
        torch.testing.assert_close(out, block.run_in_bfloat16(hidden), rtol=0.02, atol=0.02)
    modules = [view.module.removeprefix(f"{path}.") for view in views]
    assert {inner.rpartition(".")[2] for inner in modules if inner in ran} - LAST == AGAIN.get(name, set())
