"""AWQ: scale up the weight columns whose input activations are large, so they lose less in rounding.

Idea (Lin et al. 2023, arXiv:2306.00978): the most important weights are those of channels with large inputs. A fold
multiplies weight column j by `s_j = mean|x_j|^a` and divides input channel j by `s_j`. The rounding error of column j
is divided by `s_j`, as long as the scale of the column's quantization group does not grow. For each group of layers
that share an input, several values of `a` are tried, and the one with the smallest output error wins. To compare them,
the scaled weights are rounded by `rtn` with a short scale search (`_folds.py`).

Cost: each of the `steps` exponents rounds 256 rows of each weight and multiplies them by 512 tokens. The block
also runs about twelve times on one batch. SmolLM2-135M takes 40 seconds on one core.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from zeropoint.algorithms._folds import Fold, Group, floored, search
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: Statistics of the input that `fold` uses in addition to the group's sample.
NEEDS: frozenset[str] = frozenset({"second_moment"})


@dataclass(frozen=True, slots=True)
class Options:
    """`steps`: number of exponents `a` tried, evenly spaced in (0, `most`]."""

    steps: int = 6
    most: float = 0.75


def fold(group: Group, stats: LayerStats, scheme: Scheme, options: Options) -> Fold:
    """Return the scale for a group's input, or ones if no candidate lowers the output error."""
    sizes = floored(np.abs(group.inputs).mean(axis=0))
    alphas = np.linspace(0, options.most, options.steps + 1, dtype=np.float32)[1:]
    return search(group, stats, scheme, (sizes**alpha for alpha in alphas))
