"""`fit`: the decision made by measuring. A caller of every layer below that only ever makes another plan."""

from zeropoint.fitting.fit import fit
from zeropoint.fitting.result import OBJECTIVES, Fit, Prediction, Settings

__all__ = ["OBJECTIVES", "Fit", "Prediction", "Settings", "fit"]
