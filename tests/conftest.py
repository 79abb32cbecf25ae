"""Shared fixtures: tiny checkpoints (built once a session) and the real model where there is one."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.support import forked, tiny
from zeropoint.cli.main import main

ROOT = Path(__file__).resolve().parent.parent

# How many examples a property test tries, and which. `pytest --hypothesis-profile=NAME` chooses the profile.
settings.register_profile("dev", deadline=None, max_examples=60)
# The same examples in every run, for `make pytest`: a failure there is a failure everywhere.
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True)
# A search that takes hours, for changes to the kernels and readers.
settings.register_profile("search", settings.get_profile("dev"), max_examples=5000)
settings.load_profile("dev")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes that they start, keep nothing in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEROPOINT_CACHE", str(tmp_path_factory.mktemp("cache") / "zeropoint"))
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Skip `os.fsync`, because no test checks what survives a crash of the machine. Child processes still call it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def _forked_measuring_processes() -> Iterator[None]:
    """Let `compare`, `check`, `fit` and `bench` measure in forks of a process that has already imported torch."""
    with forked.measuring_processes():
        yield


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """Exclude all objects that exist before a test file runs, such as those of torch, from garbage collection.

    Quantizing and loading a model each start a collection, which would take longer than the work on a tiny model.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function: `tiny_checkpoint("gpt2")` returns the folder of that tiny checkpoint.

    The folder is read-only, and shared by all tests.
    """
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


@pytest.fixture(scope="session")
def reference_artifact(
    reference_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Return a function: `reference_artifact("int8")` returns the folder of the real model's INT8 artifact.

    `int8.json` beside the folder is what `quantize --json` wrote. Both are read-only, and shared by all processes of
    pytest-xdist: the first process that needs the artifact makes it, and others wait.
    """
    root = tmp_path_factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "reference-artifacts"
    folder.mkdir(exist_ok=True)

    def get(format: str) -> Path:
        out, told = folder / format, folder / f"{format}.json"
        with (folder / f"{format}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not out.exists():
                command = ["quantize", str(reference_model), "-o", str(out), "--format", format]
                assert main([*command, "--json", str(told)]) == 0
        return out

    return get


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of the real model: they take longest, and the others fill the second process meanwhile."""
    items.sort(key=lambda item: item.get_closest_marker("reference_model") is None)
