"""A key or value beyond float16's 65504: rows before it stay, one warning says so, and float32 gives the same."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from zeropoint.runtime.native.runner import NativeRunner
from zeropoint.runtime.native.session import Session

Loud = Callable[[str, float], Path]
LOUD = 65
BEFORE, AFTER = [1, 2, 3], [4, 5, LOUD, 6]
WHOLE = [*BEFORE, LOUD, *AFTER]
#: The projection whose output of the token LOUD is beyond float16, and by how much.
KINDS = [("v_proj", 1600.0), ("v_proj", -2500.0), ("k_proj", 1600.0), ("k_proj", -2500.0)]


@pytest.fixture(scope="module")
def loud(tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Loud:
    """`loud("v_proj", 1600)` -> a checkpoint whose values of the token LOUD are about 64 * 1600."""
    built: dict[tuple[str, float], Path] = {}

    def get(projection: str, factor: float) -> Path:
        key = projection, factor
        if key not in built:
            source = tiny_checkpoint("llama_untied")
            folder = Path(shutil.copytree(source, tmp_path_factory.mktemp("loud") / "model"))
            tensors = load_file(folder / "model.safetensors")
            embedding = tensors["model.embed_tokens.weight"]
            embedding[LOUD] *= 3
            direction = embedding[LOUD] / embedding[LOUD].pow(2).mean().sqrt()
            tensors[f"model.layers.0.self_attn.{projection}.weight"][0] = factor * direction
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
            built[key] = folder
        return built[key]

    return get


def opened(folder: Path, kv_cache: str = "float16") -> NativeRunner:
    return NativeRunner.open(folder, threads=1, cache_type=kv_cache)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


@pytest.mark.parametrize(("projection", "factor"), KINDS)
def test_earlier_rows_stay_and_float32_gives_the_same(
    projection: str, factor: float, loud: Loud, caplog: pytest.LogCaptureFixture
) -> None:
    folder = loud(projection, factor)
    runner = opened(folder)
    alone = runner.logits(np.array(BEFORE))
    assert warnings(caplog) == []
    whole = runner.logits(np.array(WHOLE))
    np.testing.assert_array_equal(whole[: len(BEFORE)], alone)
    assert [("float16" in said, "--kv-cache float32" in said) for said in warnings(caplog)] == [(True, True)]
    again = runner.logits(np.array(WHOLE))
    np.testing.assert_array_equal(again, whole)
    assert len(warnings(caplog)) == 1  # said once

    caplog.clear()
    float32 = opened(folder, "float32").logits(np.array(WHOLE))
    assert warnings(caplog) == []
    np.testing.assert_allclose(whole, float32, rtol=0, atol=5e-3 * np.abs(float32).max())
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(torch.tensor([WHOLE])).logits[0].numpy()
    np.testing.assert_allclose(float32, wanted, rtol=0, atol=5e-3 * np.abs(wanted).max())


@pytest.mark.parametrize(("projection", "factor"), KINDS)
def test_when_the_cache_widens_does_not_matter(projection: str, factor: float, loud: Loud) -> None:
    at_once = Session(opened(loud(projection, factor)).decoder, threads=1).feed_all(WHOLE)
    for cuts in ([3], [4], [1, 2, 3, 4, 5, 6, 7]):
        session = Session(opened(loud(projection, factor)).decoder, threads=1)
        parts = [session.feed_all(part.tolist()) for part in np.split(np.array(WHOLE), cuts)]
        np.testing.assert_allclose(np.concatenate(parts), at_once, rtol=0, atol=1e-4 * np.abs(at_once).max())


def test_a_widened_cache_forgets_grows_and_keeps_sequences_apart(
    loud: Loud, caplog: pytest.LogCaptureFixture
) -> None:
    decoder = opened(loud("v_proj", 1600.0)).decoder
    quiet, mixed = np.array(BEFORE * 4, np.int32), np.array([*BEFORE, LOUD], np.int32)
    cache = decoder.cache(32, sequences=2)
    narrow = cache.nbytes

    def step(tokens: np.ndarray, sequence: int, first: int) -> np.ndarray:
        positions = np.arange(first, first + len(tokens), dtype=np.int32)
        return decoder.forward(cache, tokens, np.full_like(tokens, sequence), positions, threads=1)

    first = step(quiet[:6], 0, 0)
    assert not cache.is_wide
    step(mixed, 1, 0)
    assert cache.is_wide
    assert cache.nbytes > narrow
    second = step(quiet[6:], 0, 6)
    cache.grow(64)
    cache.truncate(0, 0)
    np.testing.assert_array_equal(step(quiet, 0, 0)[:6], first)
    cache.truncate(6, 0)
    np.testing.assert_array_equal(step(quiet[6:], 0, 6), second)
    assert len(warnings(caplog)) == 1


def test_what_fits_float16_warns_of_nothing(loud: Loud, caplog: pytest.LogCaptureFixture) -> None:
    runner = opened(loud("v_proj", 900.0))  # about 57600
    assert np.isfinite(runner.logits(np.array(WHOLE))).all()
    assert warnings(caplog) == []
