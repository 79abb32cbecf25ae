"""Statistics: intervals of a text's metrics by bootstrap (`bootstrap.py`), accuracy on paired items
(`paired_accuracy.py`)."""

from zeropoint.evaluate.statistics.bootstrap import (
    CONFIDENCE,
    POWER,
    RESAMPLES,
    Estimate,
    Resampler,
    estimate_exponential_of_mean,
    estimate_mean,
    estimate_quantile,
    estimate_ratio,
    estimate_share,
    resampler,
)

__all__ = [
    "CONFIDENCE",
    "POWER",
    "RESAMPLES",
    "Estimate",
    "Resampler",
    "estimate_exponential_of_mean",
    "estimate_mean",
    "estimate_quantile",
    "estimate_ratio",
    "estimate_share",
    "resampler",
]
