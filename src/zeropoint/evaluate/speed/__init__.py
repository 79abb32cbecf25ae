"""Speed of prefill and decode: the settings (`settings.py`) and the measurement (`measure.py`)."""

from zeropoint.evaluate.speed.measure import MIN_REPEATS, Rate, Speed, measure_speed
from zeropoint.evaluate.speed.settings import SpeedSettings

__all__ = ["MIN_REPEATS", "Rate", "Speed", "SpeedSettings", "measure_speed"]
