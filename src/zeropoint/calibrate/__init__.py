"""From text to the tokens that algorithms observe a model on."""

from zeropoint.calibrate.text import Calibration, calibration

__all__ = ["Calibration", "calibration"]
