"""Measurements: quality paired with the float32 reference model, cost in fresh processes, confidence intervals.

`compare` measures a model beside its artifacts, `bench` measures one model's cost, `check` is the gate. No module here
imports torch directly; the measuring process opens models with `zeropoint.runtime.open_runner`.
"""

from zeropoint.evaluate.bench import bench
from zeropoint.evaluate.compare import compare
from zeropoint.evaluate.gate.check import check
from zeropoint.evaluate.gate.verdict import Verdict
from zeropoint.evaluate.tasks.accuracy import TaskRequest

__all__ = ["TaskRequest", "Verdict", "bench", "check", "compare"]
