"""Fixtures: fake models with logits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.page.scoring import ScoringModel, make_models


@pytest.fixture
def models(fake_folder: Path) -> list[ScoringModel]:
    """Return three models: fp16, int8 and int4."""
    return make_models(fake_folder)
