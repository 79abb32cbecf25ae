"""Damaged files of every kind that a stranger may hand us: each is refused in a sentence, or is sound."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support import damage_subjects as subjects
from tests.support.damage import Subject, Trial, limited

MUTANTS = 50
#: So many of the mutants of each file must be refused, where damage is not made good from elsewhere.
REFUSED = MUTANTS // 4
SEED = 0

Kind = Callable[[Path], Iterator[Subject]]


@pytest.mark.filterwarnings(
    "ignore"
)  # transformers says what it thinks of odd configs before it refuses them
@pytest.mark.parametrize(
    ("kind", "files"),
    [
        (subjects.gguf_subjects, 5),
        (subjects.safetensors_subjects, 5),
        (subjects.artifact_subjects, 6),
        (subjects.engine_subjects, 3),
    ],
)
def test_damaged_files(kind: Kind, files: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)  # a thousand warnings that a packed file is made again
    tried = 0
    for subject in kind(tmp_path):
        with limited():
            outcomes = Trial(subject).run(MUTANTS, SEED)
        tried += sum(outcomes.values())
        assert outcomes["refused"] >= REFUSED or subject.mended, (subject.name, outcomes)
    assert tried == files * MUTANTS
