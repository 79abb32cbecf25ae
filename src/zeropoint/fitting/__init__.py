"""`fit`: the decision made by measuring. A caller of every layer below that only ever makes another plan."""

from zeropoint.fitting.fit import fit
from zeropoint.fitting.result import FORMATS, OBJECTIVES, Fit, Prediction, Settings
from zeropoint.fitting.target import read_machine
from zeropoint.userfolder import default_folder

__all__ = ["FORMATS", "OBJECTIVES", "Fit", "Prediction", "Settings", "default_folder", "fit", "read_machine"]
