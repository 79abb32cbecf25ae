"""The native library's edges: level choice, threads, forks, pickles, freeing."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import zeropoint
from tests.kernels.weights import random_weight
from zeropoint.errors import UnsupportedError
from zeropoint.kernels import library, native

LEVELS = library.isa_levels()
needs_library = pytest.mark.skipif(not LEVELS, reason="the native library is not built")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    library.load.cache_clear()
    monkeypatch.setattr(library, "_candidates", lambda: iter(()))
    yield
    monkeypatch.undo()
    library.load.cache_clear()


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(zeropoint.__path__[0]).parent)
    env = {**os.environ, "PYTHONPATH": source, **environment}
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)


@needs_library
@pytest.mark.parametrize("level", LEVELS)
def test_the_environment_forces_a_level(level: str) -> None:
    done = run("from zeropoint.kernels import active_isa; print(active_isa())", ZEROPOINT_ISA=level)
    assert done.stdout.strip() == level, done.stderr


@needs_library
def test_an_unknown_level_is_an_error() -> None:
    code = "from zeropoint.kernels import choose; from zeropoint.values.scheme import parse\n"
    code += "print(choose(parse('int8'), (16, 16))[1])\n"
    code += "from zeropoint.kernels import active_isa; active_isa()"
    done = run(code, ZEROPOINT_ISA="mmx")
    assert "ZEROPOINT_ISA=mmx is no level" in done.stdout
    assert "UnsupportedError" in done.stderr


def test_a_missing_library_is_said(no_library: None) -> None:
    with pytest.raises(UnsupportedError, match="not installed"):
        library.load()
    assert library.isa_levels() == ()
    scheme = random_weight("int8", (16, 16)).scheme
    assert "not installed" in (native.refusal(scheme, (16, 16)) or "")


@needs_library
def test_calls_from_several_threads() -> None:
    x = np.random.default_rng(0).standard_normal((33, 256)).astype(np.float32)
    packed = [native.pack(random_weight("int8:channel:a8g64", (300, 256), seed)) for seed in range(4)]
    expected = [native.linear(x, p, threads=1) for p in packed]
    wrong: list[int] = []

    def work(i: int) -> None:
        same = all(np.array_equal(native.linear(x, packed[i], threads=3), expected[i]) for _ in range(30))
        if not same:
            wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@needs_library
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_computes() -> None:
    packed = native.pack(random_weight("int8:channel:a8g64", (300, 256)))
    x = np.ones((40, 256), np.float32)
    expected = native.linear(x, packed, threads=2)

    def child() -> None:
        os._exit(0 if np.array_equal(native.linear(x, packed, threads=2), expected) else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0


@needs_library
def test_packed_weights_are_not_pickled_and_are_freed() -> None:
    packed = native.pack(random_weight("int8", (16, 16)))
    with pytest.raises(TypeError, match="pack it again"):
        pickle.dumps(packed)
    finalizer = packed._finalizer
    del packed
    gc.collect()
    assert not finalizer.alive


@needs_library
def test_bandwidth_is_plausible() -> None:
    assert 1e8 < library.read_bandwidth(1 << 24, threads=1, repeats=2) < 1e13
