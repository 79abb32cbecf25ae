"""What is known of a layer's input when its weights are quantized. Algorithms say in `NEEDS` what they ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class LayerStats:
    """Sums over `count` tokens of products of the layer's input x; float32, additive.

    - `second_moment` `[in]`: each channel's square;
    - `hessian` `[in, in]`: x x', that of the layer's squared output error up to a factor;
    - `drift` `[in, in]`: (y - x) x', with y the input that the float model has where the quantized one has x.
    """

    second_moment: Floats
    count: int
    hessian: Floats | None = None
    drift: Floats | None = None

    def merge(self, other: LayerStats) -> LayerStats:
        """The statistics of both sets of tokens. Raises `UsageError` when they are of different layers or kinds."""
        if self.second_moment.shape != other.second_moment.shape:
            raise UsageError("statistics of layers with different inputs cannot be merged")
        return LayerStats(
            self.second_moment + other.second_moment,
            self.count + other.count,
            _sum(self.hessian, other.hessian),
            _sum(self.drift, other.drift),
        )


def _sum(first: Floats | None, second: Floats | None) -> Floats | None:
    if (first is None) != (second is None):
        raise UsageError("statistics of which one lacks a Hessian cannot be merged")
    return None if first is None or second is None else first + second
