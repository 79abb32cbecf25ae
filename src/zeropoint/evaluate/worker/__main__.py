"""`python -m zeropoint.evaluate.worker`: answer one request on standard input."""

import sys

from zeropoint.evaluate.worker.process import main

sys.exit(main())
