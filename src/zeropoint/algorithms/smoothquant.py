"""SmoothQuant: scale down input channels with outliers and scale up their weight columns, for int8 activations.

Idea (Xiao et al. 2022, arXiv:2211.10438): with one 8-bit scale per token, a few channels a hundred times larger than
the rest leave the rest only a few codes. A fold divides input channel j by `s_j = max|x_j|^a / max|W_j|^(1-a)` and
multiplies weight column j by `s_j`. The float outputs stay the same; the larger `a`, the more of the range moves into
the weights. `a` is searched for each group of layers that share an input, by the group's output error with weights and
inputs rounded as the scheme says.

Cost: `steps` times rounding 256 rows of each weight and multiplying them by 512 tokens, and about twelve runs of the
block on one batch; SmolLM2-135M takes 40 seconds on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zeropoint.algorithms._folds import Fold, Group, floored, search
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: Statistics of the input that `fold` uses beside the group's sample.
NEEDS: frozenset[str] = frozenset({"second_moment"})


@dataclass(frozen=True, slots=True)
class Options:
    """`steps`: number of exponents `a` tried, evenly spaced from `least` to `most`, both included."""

    steps: int = 6
    least: float = 0.4
    most: float = 0.9


def fold(group: Group, stats: LayerStats, scheme: Scheme, options: Options) -> Fold:
    """Return the scale for a group's input, or ones if no candidate lowers the output error."""
    input_sizes = floored(np.abs(group.inputs).max(axis=0))
    weight_sizes = floored(np.max([np.abs(weight).max(axis=0) for weight in group.weights], axis=0))
    alphas = np.linspace(options.least, options.most, options.steps, dtype=np.float32)
    return search(
        group, stats, scheme, (input_sizes**alpha / weight_sizes ** (1 - alpha) for alpha in alphas)
    )
