"""Sensitivity of each group of layers to each format: `measure` returns the table from which plans are made.

There are three scores, from cheap to exact: the relative error of the group's outputs, the KL divergence predicted from
gradients (Fisher information), and the KL divergence measured with only that group quantized. The table also says how
well the scores agree. No layer is assumed to be more sensitive than another.
"""

from zeropoint.quantization.sensitivity.errors import check_formats
from zeropoint.quantization.sensitivity.measure import measure, sensitivity_key

__all__ = ["check_formats", "measure", "sensitivity_key"]
