"""The gate: whether an artifact, or a file made from it, still predicts what its model predicts.

`check.py` measures and judges, `bounds.py` compares intervals with bounds, `verdict.py` holds the answer. In
`export_agreement.py`, an exported file is compared with its artifact.
"""

from zeropoint.evaluate.gate.bounds import DEFAULT_BOUNDS, BoundResult, default_bounds, judge, judge_accuracy
from zeropoint.evaluate.gate.check import check
from zeropoint.evaluate.gate.verdict import Verdict

__all__ = ["DEFAULT_BOUNDS", "BoundResult", "Verdict", "check", "default_bounds", "judge", "judge_accuracy"]
