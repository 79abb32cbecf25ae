"""Packages that answer old names import nothing to find out that a name is not an old one.

The import of a submodule asks its package for an attribute first. A package that imports something then may never end.
"""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, sys
package = importlib.import_module(sys.argv[1])
before = set(sys.modules)
assert not hasattr(package, "nothing")
assert set(sys.modules) == before, set(sys.modules) - before
"""


@pytest.mark.parametrize(
    "package", ["zeropoint", "zeropoint.machine", "zeropoint.quantization", "zeropoint.runtime"]
)
def test_an_unknown_name_imports_nothing(package: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, package], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["cores", "detect", "heap"])
def test_a_module_of_machine_can_be_imported_first(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"from zeropoint.machine import {module}"], capture_output=True
    )
    assert done.returncode == 0, done.stderr
