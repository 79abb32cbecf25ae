"""Mutated artifacts: a clear error each time, or a model; never a crash, and never two errors in one."""

from __future__ import annotations

import json
import random
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models.test_config import JUNK, mutate
from tests.runtime.native.conftest import Artifacts
from zeropoint.errors import ZeropointError
from zeropoint.runtime.native.runner import NativeRunner

ROUNDS = 700  # of each of three artifacts


@pytest.mark.parametrize(("name", "format"), [("llama_tied", "int8"), ("gpt2", "int4"), ("phi3", "fp16")])
def test_mutated_artifacts_load_or_say_why(
    name: str, format: str, artifact_of: Artifacts, tmp_path: Path
) -> None:
    source, rng = artifact_of(name, format), random.Random(0)
    loaded = 0
    for _ in range(ROUNDS):
        folder = Path(shutil.copytree(source, tmp_path / "a"))
        damage(folder, rng)
        try:
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                NativeRunner.open(folder, threads=1).logits(np.arange(4))
            loaded += 1
        except ZeropointError as error:
            message = str(error)
            if "\n" in message or not message:
                pytest.fail(f"not one sentence: {message!r}")
        shutil.rmtree(folder)
    assert loaded < ROUNDS


def damage(folder: Path, rng: random.Random) -> None:
    """One change to one file: to the config, the card, the tokenizer's files, or bytes of anything."""
    file = folder / rng.choice(
        ["config.json", "config.json", "zeropoint.json", "tokenizer_config.json", "model.safetensors"]
    )
    if file.suffix == ".json" and rng.random() < 0.8:
        data = json.loads(file.read_text())
        mutate_deep(data, rng)
        file.write_text(json.dumps(data))
        return
    content = bytearray(file.read_bytes())
    # the beginning of a safetensors file is its header, where damage is most dangerous
    reach = min(len(content), 2000 if file.suffix == ".safetensors" and rng.random() < 0.7 else len(content))
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(reach)] = rng.randrange(256)
    if rng.random() < 0.2:
        del content[rng.randrange(len(content)) :]
    file.write_bytes(content)


def mutate_deep(data: Any, rng: random.Random) -> None:
    """Change one value, at any depth."""
    while isinstance(data, dict) and data:
        inner = [value for value in data.values() if isinstance(value, dict) and value]
        if not inner or rng.random() < 0.4:
            mutate(data, rng)
            return
        data = rng.choice(inner)
    if isinstance(data, dict):
        data["field"] = rng.choice(JUNK)
