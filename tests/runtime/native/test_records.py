"""Every family's record, computed naively in numpy, against transformers in float32."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.runtime.native.reference import Reference
from tests.support import tiny
from zeropoint.models.families import derive, families

TOKENS = np.random.default_rng(0).integers(0, 256, 24)


@pytest.mark.parametrize("name", tiny.NATIVE)
def test_a_record_means_what_transformers_computes(
    name: str, random_checkpoint: Callable[[str], Path]
) -> None:
    path = random_checkpoint(name)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.inference_mode():
        want = model(input_ids=torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    stored = {key: value.numpy() for key, value in model.state_dict().items()}
    record = derive(json.loads((path / "config.json").read_text()))
    got = Reference(record, stored).logits(TOKENS)
    assert np.linalg.norm(got - want) < 2e-5 * np.linalg.norm(want)
    assert not record.names() - set(stored)


def test_every_family_is_tested() -> None:
    types = {
        getattr(tiny.transformers, class_name).model_type
        for class_name, _ in {**tiny.CONFIGS, **tiny.NATIVE_CONFIGS}.values()
    }
    assert set(families()) <= types
