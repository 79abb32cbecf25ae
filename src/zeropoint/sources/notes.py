"""Notes on a source's files, told to the user once."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

_told: set[str] = set()


def tell(notes: Iterable[str]) -> None:
    """Log each note as a warning, once in a process: `fit` opens a model many times over."""
    for note in notes:
        if note not in _told:
            _told.add(note)
            logger.warning("%s", note)
