"""The heap of a server: one for all threads, which returns large freed blocks."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, sys, threading
from zeropoint.machine.heap import bound

if sys.argv[1] == "bound":
    bound()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]


def work():
    blocks = [libc.malloc(50_000) for _ in range(100)]
    barrier.wait()
    for block in blocks:
        libc.free(block)


barrier = threading.Barrier(4)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info.argtypes, libc.fflush.argtypes = [ctypes.c_int, ctypes.c_void_p], [ctypes.c_void_p]
out = libc.fdopen(1, b"w")
libc.malloc_info(0, out)
libc.fflush(out)
"""


def heaps(mode: str) -> int:
    """Return how many heaps a process has after four threads have used the heap."""
    run = subprocess.run([sys.executable, "-c", SCRIPT, mode], capture_output=True, text=True, check=True)
    return run.stdout.count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="only glibc has this heap")
def test_all_threads_of_a_server_share_one_heap() -> None:
    assert heaps("bound") == 1 < heaps("default")
