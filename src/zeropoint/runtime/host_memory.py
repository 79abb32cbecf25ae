"""The memory of this process, from Linux's /proc, for engines that hold their models in it.

On other systems every value is 0, and reports omit it.

Resident bytes are *anonymous* (allocated) or *file* (memory-mapped files, shared with the page cache and released
under memory pressure). Mapped weights count as file bytes, loaded weights as anonymous bytes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from zeropoint.machine.heap import release
from zeropoint.runtime.engine import Memory

_ROLLUP = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def measure() -> Memory:
    """Return freed heap memory to the system, then read this process's memory from /proc."""
    release()  # memory that the allocator holds in reserve is not the model's
    rollup = _kilobyte_fields(_ROLLUP)
    resident = rollup.get("Rss", 0)
    anonymous = rollup.get("Anonymous", 0)
    peak = _kilobyte_fields(_STATUS).get("VmHWM", 0)
    return Memory(resident, anonymous, max(resident - anonymous, 0), max(peak, resident))


def reset_peak() -> None:
    """Reset the peak to the present resident bytes. If the kernel does not support it, the old peak stays."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def _kilobyte_fields(path: Path) -> dict[str, int]:
    """Return bytes by name from lines `Name:   123 kB`; {} if there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}
