"""The load of other processes."""

from __future__ import annotations

import os
import time

from zeropoint.machine.load import OtherLoad


def test_own_work_is_not_another_load() -> None:
    # Other load on the test machine may only add to it; the own part must be taken off.
    load = OtherLoad()
    time.sleep(0.05)
    assert 0 <= load.cores() <= (os.cpu_count() or 1) + 1
