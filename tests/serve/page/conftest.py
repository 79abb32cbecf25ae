"""Fixtures: the folder of a tokenizer, and fake models with logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.http.fake import write_tokenizer
from tests.serve.page.scoring import ScoringModel, make_models


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the models' tokenizer, which has a chat template."""
    folder = tmp_path_factory.mktemp("page") / "tiny"
    write_tokenizer(folder)
    return folder


@pytest.fixture
def models(folder: Path) -> list[ScoringModel]:
    """Return three models: fp16, int8 and int4."""
    return make_models(folder)
