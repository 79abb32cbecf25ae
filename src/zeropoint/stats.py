"""What is known of a layer's input when its weights are quantized. Algorithms say in `NEEDS` what they ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError


@dataclass(frozen=True, slots=True, eq=False)
class LayerStats:
    """`second_moment`: float32 `[in]`, the sum over `count` tokens of each input channel's square."""

    second_moment: NDArray[np.float32]
    count: int

    def merge(self, other: LayerStats) -> LayerStats:
        """The statistics of both sets of tokens. Raises `UsageError` when they are of different layers."""
        if self.second_moment.shape != other.second_moment.shape:
            raise UsageError("statistics of layers with different inputs cannot be merged")
        return LayerStats(self.second_moment + other.second_moment, self.count + other.count)
