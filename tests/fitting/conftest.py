"""One tiny model in three formats, made once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny import make_checkpoint
from zeropoint.checkpoint import open_checkpoint
from zeropoint.fitting.cache import Cache
from zeropoint.fitting.candidates import Candidates, read_record


def silent(what: str, share: float) -> None:
    assert what
    assert 0 <= share <= 1


def candidates_of(folder: Path, *formats: str) -> Candidates:
    checkpoint = open_checkpoint(folder)
    found = Candidates(checkpoint, read_record(checkpoint), formats, algorithm="rtn", seed=0)
    found.make(None, silent, Cache(None), {})
    return found


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("fit") / "model")


@pytest.fixture(scope="session")
def candidates(model: Path) -> Candidates:
    return candidates_of(model, "int8", "int4")


@pytest.fixture(scope="session")
def windows(candidates: Candidates) -> np.ndarray:
    vocab = candidates.record.config.vocab
    return np.random.default_rng(0).integers(0, vocab, (4, 33))
