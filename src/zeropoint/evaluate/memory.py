"""This process's memory as Linux accounts it. Elsewhere every figure is 0 and reports leave it out.

Resident bytes are split into *anonymous* (allocated) and *file* (mapped, shared with the page cache
and given back under pressure): a model that maps its weights looks small by one and large by the other.
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
    """Bytes resident now, and `peak_bytes` since `reset_peak` or since the process began."""

    resident_bytes: int
    anonymous_bytes: int
    file_bytes: int
    peak_bytes: int

    def to_json(self) -> dict[str, int]:
        return asdict(self)


def measure() -> Memory:
    """Read the kernel's own accounts, after giving freed memory back."""
    release()  # what an allocator keeps is not the model's memory
    rollup = _kilobyte_fields(_ROLLUP)
    resident = rollup.get("Rss", 0)
    anonymous = rollup.get("Anonymous", 0)
    peak = _kilobyte_fields(_STATUS).get("VmHWM", 0)
    return Memory(resident, anonymous, max(resident - anonymous, 0), max(peak, resident))


def reset_peak() -> None:
    """Start a new peak. Where the kernel does not offer it the old one stays, which is larger."""
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5")


def _kilobyte_fields(path: Path) -> dict[str, int]:
    """`Name:   123 kB` lines -> bytes by name; empty where there is no such file."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines)
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) == 3 and row[2] == "kB"}
