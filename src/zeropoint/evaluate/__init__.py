"""Measuring honestly: quality paired with the reference, cost in fresh processes, intervals on everything.

`compare` puts a model beside its artifacts, `bench` measures one model's cost, `check` is the gate.
Nothing here imports torch; models are reached through `zeropoint.runtime.open_runner`, in the worker.
"""

from zeropoint.evaluate.accuracy import TaskRequest
from zeropoint.evaluate.bench import bench
from zeropoint.evaluate.compare import compare
from zeropoint.evaluate.gate import Verdict, check

__all__ = ["TaskRequest", "Verdict", "bench", "check", "compare"]
