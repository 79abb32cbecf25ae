"""Plans: what happens to each weight of a model, and what a plan quantizes and costs."""

from zeropoint.planning.coverage import CoverageRow, coverage, quantized_fraction, require_coverage
from zeropoint.planning.uniform import check_formats, uniform_plan

__all__ = [
    "CoverageRow",
    "check_formats",
    "coverage",
    "quantized_fraction",
    "require_coverage",
    "uniform_plan",
]
