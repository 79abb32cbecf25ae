"""What stands beside every number: the versions it depends on, and what else the machine was doing."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from pathlib import Path

_PACKAGES = ("zeropoint", "torch", "transformers", "numpy")


class OtherLoad:
    """Cores that other programs kept busy since this was made; 0.0 where the system does not say.

    The machine's busy time less this process's own: a speed measured beside another load is not one.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._others = _others_seconds()

    def cores(self) -> float:
        elapsed = time.monotonic() - self._start
        return max(_others_seconds() - self._others, 0.0) / elapsed if elapsed > 0 else 0.0


def _others_seconds() -> float:
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields)
    except (OSError, ValueError):
        return 0.0
    busy = user + nice + system + irq + softirq + steal
    return busy / os.sysconf("SC_CLK_TCK") - time.process_time()


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on; packages that are absent are left out."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
