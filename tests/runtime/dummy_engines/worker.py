"""A measuring process that knows the engine `dummy`."""

from __future__ import annotations

import sys
from pathlib import Path

from zeropoint import runtime
from zeropoint.evaluate.worker import process as worker

if __name__ == "__main__":
    runtime.__path__.append(str(Path(__file__).parent))
    sys.exit(worker.main())
