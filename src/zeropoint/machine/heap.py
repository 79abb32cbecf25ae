"""Returning freed memory to the system.

glibc keeps freed heap pages: after streaming a model's weights, hundreds of megabytes. They count as the process's
memory until `malloc_trim` returns them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc


def trim() -> None:
    """Return freed heap pages to the system, which takes milliseconds. Does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def release() -> None:
    """Collect garbage, because hooks and models reference each other in cycles, then `trim`."""
    gc.collect()
    trim()
