"""Modules of packages that answer old names can be the first that a process imports.

The import of a submodule asks its package for an attribute first. A package that imports something to answer never ends.
"""

from __future__ import annotations

import os
import pkgutil
import subprocess
import sys

import pytest

import zeropoint
import zeropoint.machine
import zeropoint.quantization
import zeropoint.runtime

#: Imports the modules named in its arguments, each in a fork of a process that holds the libraries but none of ours.
PROGRAM = """
import os, sys, traceback
import gguf, ml_dtypes, numpy, scipy.stats, tokenizers, torch, transformers
failed = 0
for name in sys.argv[1:]:
    child = os.fork()
    if not child:
        try:
            __import__(name)
        except BaseException:
            print(name, traceback.format_exc(limit=-2), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    failed += os.waitpid(child, 0)[1] != 0
sys.exit(failed > 0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_each_module_can_be_imported_first() -> None:
    packages = [zeropoint, zeropoint.machine, zeropoint.quantization, zeropoint.runtime]
    assert all(hasattr(package, "__getattr__") for package in packages)
    found = [
        module for each in packages for module in pkgutil.iter_modules(each.__path__, f"{each.__name__}.")
    ]
    names = [module.name for module in found if not module.name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
