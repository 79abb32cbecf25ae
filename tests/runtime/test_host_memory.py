"""The memory of this process is read from the system."""

from __future__ import annotations

import numpy as np
import pytest

from zeropoint.runtime import host_memory


def test_memory_follows_an_allocation() -> None:
    before = host_memory.measure()
    block = np.ones(40_000_000, np.uint8)
    after = host_memory.measure()
    assert after.anonymous_bytes - before.anonymous_bytes == pytest.approx(block.nbytes, rel=0.1)
    assert after.resident_bytes == after.anonymous_bytes + after.file_bytes
    assert after.peak_bytes >= after.resident_bytes
