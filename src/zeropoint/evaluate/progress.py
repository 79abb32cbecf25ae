"""Progress callbacks; see `zeropoint.progress`."""

from __future__ import annotations

from zeropoint.progress import Progress, part

__all__ = ["Progress", "part"]
