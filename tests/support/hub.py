"""An offline cache of the Hugging Face hub with one model in two revisions."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
from huggingface_hub import constants


def offline_hub(cache: Path, revisions: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `cache` the hub client's offline cache, put the model a/b into it, and return the model's folder.

    `revisions` maps each branch of the model to the checkpoint folder that it holds.
    """
    home = cache / "models--a--b"
    (home / "refs").mkdir(parents=True)
    for number, (revision, checkpoint) in enumerate(revisions.items()):
        commit = f"{number + 1:040x}"
        shutil.copytree(checkpoint, home / "snapshots" / commit)
        (home / "refs" / revision).write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return home
