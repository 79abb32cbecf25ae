"""Logging of the notes on a source's files."""

from __future__ import annotations

import logging
from collections.abc import Iterable

logger = logging.getLogger(__name__)

_told: set[str] = set()


def tell(notes: Iterable[str]) -> None:
    """Log each note as a warning, once per process, because some commands open a model many times."""
    for note in notes:
        if note not in _told:
            _told.add(note)
            logger.warning("%s", note)
