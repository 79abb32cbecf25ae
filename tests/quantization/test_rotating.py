"""Rotation changes no model's function, and models that it would change are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny import ARCHITECTURES, make_checkpoint
from zeropoint.algorithms.rotation import hadamard_matrix, rotate
from zeropoint.checkpoint import Checkpoint, open_checkpoint
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.planning import uniform_plan
from zeropoint.quantization import stream
from zeropoint.quantization.rotating import rotated

Tiny = Callable[[str], Path]

ROTATED = ("llama_untied", "qwen2", "qwen3", "mistral", "mixtral", "qwen2_moe")

#: Why each of the others is refused.
REFUSED = {
    "llama_tied": "tied",
    "gpt2": "tied",
    "gemma2": "tied",
    "opt": "tied",
    "bloom": "tied",
    "phi": "take the mean off",
    "gpt_neox": "take the mean off",
}


def of(folder: Path, **options: bool) -> Checkpoint:
    checkpoint = open_checkpoint(folder)
    return rotated(
        checkpoint, uniform_plan(checkpoint, "int4", algorithm="rotation", options=options, seed=3)
    )


def logits(checkpoint: Checkpoint, folder: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 32)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(checkpoint.read(name))
        return model(ids).logits


@pytest.mark.parametrize("order", [1, 2, 4, 12, 20, 28, 36, 64, 576, 768, 896, 1536])
def test_hadamard_matrices_are_orthogonal(order: int) -> None:
    found = hadamard_matrix(order)
    assert found is not None
    assert set(np.unique(found)) <= {-1, 1}
    np.testing.assert_array_equal(found.astype(float) @ found.T.astype(float), order * np.eye(order))


@pytest.mark.parametrize("width", [64, 90, 576])
def test_rotations_are_orthogonal_and_seeded(width: int) -> None:
    assert hadamard_matrix(90) is None  # of no structure
    found = rotate(width, 0)
    np.testing.assert_allclose(found @ found.T, np.eye(width), atol=1e-5)
    np.testing.assert_array_equal(found, rotate(width, 0))
    assert not np.array_equal(found, rotate(width, 1))


def test_every_architecture_is_here() -> None:
    assert set(ROTATED) | set(REFUSED) == set(ARCHITECTURES)


@pytest.mark.parametrize(
    "options", [{}, {"residual": False}, {"heads": False}], ids=["both", "heads", "residual"]
)
@pytest.mark.parametrize("name", ROTATED)
def test_rotation_leaves_the_logits(name: str, options: dict[str, bool], tmp_path: Path) -> None:
    folder = make_checkpoint(name, tmp_path / name, outliers=True)
    plain, turned = open_checkpoint(folder), of(folder, **options)
    changed = [
        info.name
        for info in plain.parameters()
        if not torch.equal(plain.read(info.name), turned.read(info.name))
    ]
    assert len(changed) >= 2 * len(plain.blocks())
    expected, found = logits(plain, folder), logits(turned, folder)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("name", ["llama_tied", "gemma2", "opt", "phi"])
def test_the_values_of_attention_are_rotated_alone(name: str, tmp_path: Path) -> None:
    """Tied embeddings, norms of any kind: none of them lies between the values and what takes them."""
    folder = make_checkpoint(name, tmp_path / name, outliers=True)
    expected, found = (logits(c, folder) for c in (open_checkpoint(folder), of(folder, residual=False)))
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_a_rotation_of_nothing_is_refused(tiny_checkpoint: Tiny) -> None:
    with pytest.raises(UsageError, match="nothing to rotate"):
        of(tiny_checkpoint("qwen2"), residual=False, heads=False)


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_by_name(name: str, tiny_checkpoint: Tiny) -> None:
    folder = tiny_checkpoint(name)
    with pytest.raises(
        UnsupportedError,
        match=rf"rotation does not fit {open_checkpoint(folder).model_type}: .*{REFUSED[name]}",
    ):
        of(folder)


def test_a_norm_behind_a_layer_is_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("olmo2", tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"olmo2: .*would change what model\.layers\.0 computes"):
        of(folder)


def test_values_that_no_layer_makes_alone_are_refused(tmp_path: Path) -> None:
    folder = make_checkpoint("phi3", tmp_path / "model")
    with pytest.raises(UnsupportedError, match=r"phi3: .* values of attention alone.*heads=false"):
        of(folder)
    turned = of(folder, heads=False)
    expected, found = logits(open_checkpoint(folder), folder), logits(turned, folder)
    assert (found - expected).norm() <= 1e-4 * expected.norm()


def test_large_channels_are_spread(tmp_path: Path) -> None:
    folder = make_checkpoint("llama_untied", tmp_path / "model", outliers=True)
    name = "model.layers.0.self_attn.q_proj.weight"
    before, after = (c.read(name).abs().amax(0) for c in (open_checkpoint(folder), of(folder)))
    assert after.max() / after.mean() < before.max() / before.mean()


@pytest.mark.parametrize("algorithm", ["rotation", "rotation+gptq", "rotation+smoothquant+gptq"])
def test_it_composes(algorithm: str, tmp_path: Path) -> None:
    """Matrices in float32 on the way, what is kept in its own type, the plan's names and bytes."""
    folder = make_checkpoint("qwen2", tmp_path / "model", dtype=torch.bfloat16)
    checkpoint = open_checkpoint(folder)
    plan = uniform_plan(checkpoint, "int8:channel:sym:bf16:a8token", algorithm=algorithm)
    tokens = None if algorithm == "rotation" else np.random.default_rng(0).integers(0, 256, (4, 32))
    made = dict(stream(checkpoint, plan, tokens=tokens))
    assert list(made) == list(plan.choices)
    assert {str(w.dtype) for w in made.values() if isinstance(w, np.ndarray)} == {"bfloat16"}
    assert "rotation" in plan.choices["lm_head.weight"].algorithm
