"""Fixtures: a fake model and a client of its server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, client_of


@pytest.fixture
def model(fake_folder: Path) -> FakeModel:
    return FakeModel(fake_folder)


@pytest.fixture(scope="module")
def shared_client(fake_folder: Path) -> Iterator[tuple[TestClient, FakeModel]]:
    """A client and its model, which answers "Hello, world!"; started once for all tests of a file."""
    model = FakeModel(fake_folder)
    with client_of(model) as client:
        yield client, model


@pytest.fixture
def client(shared_client: tuple[TestClient, FakeModel]) -> TestClient:
    return shared_client[0]
