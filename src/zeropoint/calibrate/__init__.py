"""Calibration text: from a file to the token windows on which algorithms observe a model."""

from zeropoint.calibrate.text import Calibration, calibration

__all__ = ["Calibration", "calibration"]
