"""The environment of a measurement: package versions, and the load of other programs."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = ("zeropoint", "torch", "transformers", "numpy")


class OtherLoad:
    """The load of other programs since construction: the machine's busy time minus this process's own.

    A speed measured beside another load is not reliable.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._others = _others_seconds()

    def cores(self) -> float:
        """Return the mean number of cores that other programs kept busy; 0.0 if the system does not report it."""
        elapsed = time.monotonic() - self._start
        return max(_others_seconds() - self._others, 0.0) / elapsed if elapsed > 0 else 0.0


def _others_seconds() -> float:
    """Return the CPU seconds of all other processes since boot, from /proc/stat; 0.0 without it."""
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError):
        return 0.0
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that results depend on."""
    installed = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return installed
