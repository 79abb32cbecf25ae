"""Tiny checkpoints whose every vector matters, and artifacts of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support import tiny
from zeropoint import quantize

Artifacts = Callable[[str, str], Path]


def randomize(model: torch.nn.Module) -> None:
    """Norms begin as ones and biases as zeros, which would hide a wrong one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            else:
                parameter.mul_(3)  # far enough from zero that every nonlinearity matters


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`random_checkpoint("gpt2")` -> the folder of that tiny checkpoint; read-only, shared by all tests."""
    built: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in built:
            folder = tiny.make_checkpoint(name, tmp_path_factory.mktemp("random") / name)
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            randomize(model)
            model.save_pretrained(folder)
            built[name] = folder
        return built[name]

    return get


@pytest.fixture(scope="session")
def artifact_of(
    random_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Artifacts:
    """`artifact_of("gpt2", "int8")` -> the folder of that artifact, shared by all tests."""
    built: dict[tuple[str, str], Path] = {}

    def get(name: str, format: str) -> Path:
        if (name, format) not in built:
            folder = tmp_path_factory.mktemp("artifact") / f"{name}-{format.replace(':', '-')}"
            quantize(random_checkpoint(name), folder, format=format)
            built[name, format] = folder
        return built[name, format]

    return get
