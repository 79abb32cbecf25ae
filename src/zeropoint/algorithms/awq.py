"""AWQ: make the weight columns larger whose inputs are large, so that rounding errors in them count less.

Idea (Lin et al. 2023, arXiv:2306.00978): the weights that matter are those of channels with large inputs. Scaling
their columns up by `s_j = mean|x_j|^a`, and the input down, divides the errors of rounding them by `s_j` as long as
the group's scale stays what it was. `a` is searched for each group of layers, by the group's output error; ranges are
searched with it, by `rtn`.

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
    """`steps`: values of alpha tried, evenly spaced up to `most`, 0 left out."""

    steps: int = 6
    most: float = 0.75


def fold(group: Group, stats: LayerStats, scheme: Scheme, options: Options) -> Fold:
    """The scale for a group's input, or ones where none lessens the output error."""
    sizes = floored(np.abs(group.inputs).mean(axis=0))
    alphas = np.linspace(0, options.most, options.steps + 1, dtype=np.float32)[1:]
    return search(group, stats, scheme, (sizes**alpha for alpha in alphas))
