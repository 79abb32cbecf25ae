"""Measurement of how many cores other programs keep busy, which makes a speed measured meanwhile unreliable."""

from __future__ import annotations

import os
import time
from pathlib import Path

#: A measured speed is not reliable if other programs kept more than this many cores busy on average.
NOTABLE_CORES = 0.3


class OtherLoad:
    """Meter of the CPU time of other programs since construction: the machine's busy time minus this process's own."""

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
