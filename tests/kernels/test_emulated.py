"""The checks of test_linear.py and test_sampling.py at all four levels, also on a CPU without AVX-512 and AMX.

They run with the library that emulates these instructions (native/tests/emulated), in a process of its own. Only
`make emulated` builds that library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EMULATED = ROOT / "build" / "emulated" / "libzeropoint_emulated.so"

CODE = """
import sys
from pathlib import Path

import pytest

from zeropoint.kernels import library

library._candidates = lambda: iter([Path(sys.argv[1])])
assert {"avx512", "amx"} <= set(library.isa_levels())
tests = ["tests/kernels/test_linear.py", "tests/kernels/test_sampling.py"]
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "--hypothesis-profile=ci", *tests]))
"""


def test_every_level_multiplies_as_the_reference_does() -> None:
    if not EMULATED.is_file():
        pytest.skip(f"{EMULATED} is not built: run `make emulated`")
    sources = [path for ending in ("h", "cpp") for path in (ROOT / "native").rglob(f"*.{ending}")]
    newest = max(sources, key=lambda path: path.stat().st_mtime)
    if newest.stat().st_mtime > EMULATED.stat().st_mtime:
        pytest.skip(f"{EMULATED} is older than {newest}: run `make emulated`")
    command = [sys.executable, "-c", CODE, str(EMULATED)]
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
