"""`LayerStats`: calibration statistics of a layer's input. Each algorithm names the ones it reads in its `NEEDS`."""

from __future__ import annotations

from dataclasses import dataclass

from zeropoint.errors import UsageError
from zeropoint.values.arrays import Floats


@dataclass(frozen=True, slots=True, eq=False)
class LayerStats:
    """Sums over `count` tokens of products of the layer's input x, a column vector; float32.

    - `second_moment` `[in]`: sum of x * x, the diagonal of `hessian`;
    - `hessian` `[in, in]`: sum of x x'; up to a factor, the Hessian of the layer's squared output error;
    - `drift` `[in, in]`: sum of (y - x) x', where x is the layer's input in the quantized model and y the input of the
      same layer in the float model.
    """

    second_moment: Floats
    count: int
    hessian: Floats | None = None
    drift: Floats | None = None

    def merge(self, other: LayerStats) -> LayerStats:
        """Return the statistics of both sets of tokens together.

        Raises `UsageError` if the inputs have different widths, or if only one side has a Hessian or drift.
        """
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
        raise UsageError("statistics with a Hessian or drift cannot be merged with statistics without it")
    return None if first is None or second is None else first + second
