"""The memory of this process, from Linux's /proc. On other systems every value is 0, and reports omit it.

Resident bytes are *anonymous* (allocated) or *file* (memory-mapped files, shared with the page cache and released
under memory pressure). Mapped weights count as file bytes, loaded weights as anonymous bytes.
"""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass
from pathlib import Path

from zeropoint.machine.heap import release

_ROLLUP = Path("/proc/self/smaps_rollup")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes now, and their peak since `reset_peak` or the start of the process."""

    resident_bytes: int
    anonymous_bytes: int
    file_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


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
