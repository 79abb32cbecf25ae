"""A fixture that the tests of the HTTP server and of its page share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.serve.http.fake import write_tokenizer


@pytest.fixture(scope="session")
def fake_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer with a chat template."""
    folder = tmp_path_factory.mktemp("fake") / "tiny"
    write_tokenizer(folder)
    return folder
