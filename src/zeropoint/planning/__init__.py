"""Decide what happens to each weight."""

from zeropoint.planning.coverage import CoverageRow, coverage, quantized_fraction, require_coverage
from zeropoint.planning.uniform import uniform_plan

__all__ = ["CoverageRow", "coverage", "quantized_fraction", "require_coverage", "uniform_plan"]
