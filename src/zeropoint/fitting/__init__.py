"""The `fit` command: find a mixed-precision plan within a budget of memory, loss and speed, by measuring."""

from zeropoint.files.user_folder import default_folder
from zeropoint.fitting.fit import fit
from zeropoint.fitting.result import FORMATS, OBJECTIVES, Fit, Prediction, Settings
from zeropoint.fitting.target import read_machine

__all__ = ["FORMATS", "OBJECTIVES", "Fit", "Prediction", "Settings", "default_folder", "fit", "read_machine"]
