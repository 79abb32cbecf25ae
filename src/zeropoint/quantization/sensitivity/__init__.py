"""Measure what each group of layers costs at each format: `measure` gives the table that planners read.

Three scores, from cheap to true, and how far they agree: the relative error of the layer's outputs, the divergence
predicted from gradients (Fisher information), and the divergence measured with one group swapped. Nothing here
knows which layers are fragile: that is what it finds out.
"""

from zeropoint.quantization.sensitivity.errors import check_formats
from zeropoint.quantization.sensitivity.measure import measure, sensitivity_key

__all__ = ["check_formats", "measure", "sensitivity_key"]
