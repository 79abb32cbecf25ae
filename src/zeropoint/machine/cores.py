"""The number of cores that this process may use, which is the default number of threads everywhere."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

#: The most threads of one call of the native library.
MAX_THREADS = 256
#: The limits of this process's container.
CGROUP = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Return the number of cores within this process's CPU affinity and its container's CPU limit, at least 1."""
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    limit = _limit(CGROUP)
    return usable if limit is None else min(usable, limit)


def default_threads(threads: int | None = None) -> int:
    """Return `threads`, or the number of usable cores, at most `MAX_THREADS`, if it is None."""
    return min(usable_cores(), MAX_THREADS) if threads is None else threads


@cache  # kernels ask at every call
def _limit(cgroup: Path) -> int | None:
    """Return a container's CPU limit in whole cores, at least 1; None without a limit."""
    try:  # `quota` microseconds of CPU time per `period` microseconds
        quota, period = (cgroup / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else max(1, int(quota) // int(period))
    except (OSError, ValueError):
        return None
