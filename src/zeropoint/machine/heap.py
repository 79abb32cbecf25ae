"""Returning freed memory to the system, and bounding the memory that the heap keeps.

glibc keeps freed heap pages: after streaming a model's weights, hundreds of megabytes. They count as the process's
memory until `malloc_trim` returns them.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

#: Options of glibc's `mallopt`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Blocks of at least this many bytes return to the system as soon as they are freed.
_LARGE = 1 << 20


def trim() -> None:
    """Return freed heap pages to the system, which takes milliseconds. Does nothing without glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def release() -> None:
    """Collect garbage, because hooks and models reference each other in cycles, then `trim`."""
    gc.collect()
    trim()


def bound() -> None:
    """Keep a server's heap small: call this before threads start. Does nothing without glibc.

    By default glibc gives each thread a heap of its own, and keeps ever larger freed blocks in these heaps. The free
    memory of one thread is of no use to the others, so the process grows for hours.
    """
    with contextlib.suppress(OSError, AttributeError):
        set_option = ctypes.CDLL(None).mallopt
        set_option(_M_ARENA_MAX, 1)
        set_option(_M_MMAP_THRESHOLD, _LARGE)
        set_option(_M_TRIM_THRESHOLD, 4 * _LARGE)
