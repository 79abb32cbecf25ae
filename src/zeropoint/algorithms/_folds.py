"""Shared code of the algorithms that fold scales into a model (AWQ, SmoothQuant): data classes and the search.

A fold divides the input `x` of a group of layers by a scale `s > 0` per channel and multiplies the columns of their
weights by `s`: `(W s) (x / s) = W x`, so the float outputs stay the same. The rounding errors change: a weight column
with a large `s` loses less, and a smaller input channel leaves more of the int8 range to the other channels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import rtn
from zeropoint.reference.linear import quantize_activations
from zeropoint.values.arrays import Floats
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: The largest ratio of one channel's scale to the geometric mean of all scales, in either direction.
MOST = 1e3

#: The lower bound of a channel's size, as a fraction of the largest channel's: a channel that was zero on the sample
#: must not get an unbounded scale.
FLOOR = 1e-5

#: Rows of each weight (evenly spaced) on which candidates are compared.
ROWS = 256

#: The rounding with which candidates are compared: a short `rtn` search, weighted by the scaled input.
ROUNDING = rtn.Options(steps=3)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Layers that share one input.

    - `weights`: one float32 `[out, in]` per layer;
    - `inputs`: float32 `[tokens, in]`, a sample of the shared input;
    - `source`: int `[in]`, for each input channel the output channel of the producing module that it is a copy of;
      input channels with the same source must share a scale.
    """

    weights: tuple[Floats, ...]
    inputs: Floats
    source: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """The result of a search for a fold.

    - `scale`: float32 `[in]`; the input is divided by it, the weights' columns are multiplied by it; all 1 if no
      candidate lowers the error;
    - `before`, `after`: relative squared output error without and with `scale`, summed over the layers.
    """

    scale: Floats
    before: float
    after: float


def search(group: Group, stats: LayerStats, scheme: Scheme, candidates: Iterable[Floats]) -> Fold:
    """Return the candidate scale `[in]` with the lowest output error, or ones if no candidate beats no fold."""
    if scheme.granularity != "tensor":  # with one scale per tensor, all rows affect each other
        group = replace(group, weights=tuple(weight[:: -(-len(weight) // ROWS)] for weight in group.weights))
    ones = np.ones(group.inputs.shape[1], np.float32)
    before = output_error(group, stats, scheme, ones)
    best, least_error = ones, before
    for candidate in candidates:
        scale = balanced(candidate, group.source)
        error = output_error(group, stats, scheme, scale)
        if error < least_error:
            best, least_error = scale, error
    return Fold(best, before, least_error)


def balanced(scale: Floats, source: NDArray[np.intp]) -> Floats:
    """Return `scale` with geometric mean 1, each value within `MOST` of it, and one value per source channel."""
    logs = np.log(np.maximum(scale, scale.max() * np.float32(1e-9) + np.float32(1e-30)).astype(np.float64))
    logs = (np.bincount(source, logs) / np.maximum(np.bincount(source), 1))[source]
    logs -= logs.mean()
    return np.exp(np.clip(logs, -np.log(MOST), np.log(MOST))).astype(np.float32)


def output_error(group: Group, stats: LayerStats, scheme: Scheme, scale: Floats) -> float:
    """Return the squared output error relative to the squared output, summed over the layers, under a fold by `scale`.

    The weights are rounded as `scheme` says, and the inputs too if the scheme has 8-bit activations.
    """
    inputs = (group.inputs / scale).astype(np.float32)
    x = torch.from_numpy(inputs)
    rounding_error: torch.Tensor | None = None
    if scheme.activation is not None and scheme.activation.bits == 8:
        codes, steps = quantize_activations(inputs, scheme.activation)
        size = scheme.activation.group_size or inputs.shape[1]
        rounded = codes * np.repeat(steps, size, axis=1)[:, : inputs.shape[1]]
        rounding_error = torch.from_numpy(rounded.astype(np.float32) - inputs)
    scaled_stats = LayerStats((stats.second_moment / np.square(scale)).astype(np.float32), stats.count)
    total = 0.0
    for weight in group.weights:
        scaled = (weight * scale).astype(np.float32)
        rounded_weight = torch.from_numpy(rtn.quantize(scaled, scaled_stats, scheme, ROUNDING).dequantize())
        exact = torch.from_numpy(scaled)
        error = x @ (rounded_weight - exact).T  # on the small difference, reduced-precision products suffice
        if rounding_error is not None:
            error += rounding_error @ rounded_weight.T
        total += float(error.square().sum() / (x @ exact.T).square().sum().clamp_min(1e-30))
    return total


def floored(sizes: Floats) -> Floats:
    """Return channel sizes `[in]` raised to at least `FLOOR` times the largest, and above 0."""
    raised: Floats = np.maximum(sizes, np.float32(FLOOR) * sizes.max() + np.float32(1e-30))
    return raised
