"""An engine that runs what the native engine runs, and says that its memory is 7 bytes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from zeropoint.runtime.engine import Memory, OpenOptions
from zeropoint.runtime.native.runner import NativeRunner

NAME, ORDER, EXCLUSIVE, REFERENCE = "dummy", 15, False, False
DTYPES = ("auto",)
SUMMARY = "for tests"
FALLBACK = "on a dummy"
LABELS = {NAME: "a dummy"}
REFUSAL = ""


def refusal(path: Path, options: OpenOptions) -> str:
    return REFUSAL


def prepare(path: Path, options: OpenOptions) -> None:
    pass


def open(path: Path, options: OpenOptions) -> NativeRunner:
    runner = NativeRunner.open(path, threads=options.threads)
    runner.engine = NAME
    return runner


def memory() -> Any:
    return SimpleNamespace(measure=lambda: Memory(7, 7, 7, 7), reset_peak=lambda: None)


def timing() -> None:
    return None
