"""SmoothQuant: move the range of an input's large channels into the weights, where int8 activations cannot lose it.

Idea (Xiao et al. 2022, arXiv:2211.10438): with one 8-bit scale per token, a few channels a hundred times larger than
the rest leave those no range. Dividing channel j of the input by `s_j = max|x_j|^a / max|W_j|^(1-a)` and multiplying
column j of the weights by it changes nothing but the ranges, of which `a` says how much the weights take over. Here
`a` is searched for each group of layers, by the group's output error with weights and input rounded as they will be.

Cost: `steps` roundings of 256 rows of each weight, as many products with 512 tokens, and a dozen runs of the block on a
batch; SmolLM2-135M takes 40 seconds on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zeropoint.algorithms._folds import Fold, Group, floored, search
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: Statistics of the input beside the sample in the group.
NEEDS: frozenset[str] = frozenset({"second_moment"})


@dataclass(frozen=True, slots=True)
class Options:
    """`steps`: values of alpha tried, evenly spaced between `least` and `most`."""

    steps: int = 6
    least: float = 0.4
    most: float = 0.9


def fold(group: Group, stats: LayerStats, scheme: Scheme, options: Options) -> Fold:
    """The scale for a group's input, or ones where none lessens the output error."""
    given = floored(np.abs(group.inputs).max(axis=0))
    taken = floored(np.max([np.abs(weight).max(axis=0) for weight in group.weights], axis=0))
    alphas = np.linspace(options.least, options.most, options.steps, dtype=np.float32)
    return search(group, stats, scheme, (given**alpha / taken ** (1 - alpha) for alpha in alphas))
