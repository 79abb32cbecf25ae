"""Giving freed memory back. glibc keeps freed heap pages for itself, hundreds of megabytes of them after a
model's weights have passed through, and they count as the process's memory until it is told to let go."""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
    """Return freed heap pages to the system; milliseconds. Nothing happens without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def release() -> None:
    """Drop unreachable cycles (hooks tie models to their owners), then `trim`."""
    gc.collect()
    trim()
