"""Shared fixtures: tiny checkpoints (built once a session) and the real model where there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import tiny

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, keep nothing in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROPOINT_CACHE", str(tmp_path_factory.mktemp("cache") / "zeropoint"))
        yield


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`tiny_checkpoint("gpt2")` -> the folder of that tiny checkpoint; read-only, shared by all tests."""
    built: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in built:
            built[kind] = tiny.make_checkpoint(kind, tmp_path_factory.mktemp("tiny") / kind)
        return built[kind]

    return get


@pytest.fixture(scope="session")
def reference_model() -> Path:
    """The real model (`make model` builds it), or a skip that says how to get it."""
    path = Path(os.environ.get("ZEROPOINT_REFERENCE_MODEL", ROOT / "build" / "reference-model"))
    if not (path / "model.safetensors").is_file():
        pytest.skip(f"no reference model at {path}: run `make model`, or set ZEROPOINT_REFERENCE_MODEL")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the real model: they take longest, and the others fill the second process meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("reference_model") is None)
