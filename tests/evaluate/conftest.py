from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zeropoint.evaluate.worker import client

STUB_COMMAND = (sys.executable, str(Path(__file__).parent / "worker" / "stub.py"))


@pytest.fixture
def stub_worker(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Measuring processes open the stub instead of a real runtime."""
    monkeypatch.setitem(client.call.__kwdefaults__, "command", STUB_COMMAND)
    return STUB_COMMAND


@pytest.fixture
def text_file(tmp_path: Path) -> str:
    sentence = "the quick brown fox jumps over the lazy dog and runs away. "
    file = tmp_path / "text.txt"
    file.write_text("\n\n\n".join(f"Document {i}. " + sentence * 2 for i in range(12)))
    return str(file)
