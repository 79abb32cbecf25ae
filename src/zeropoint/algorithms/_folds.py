"""What algorithms that fold scales into a model have in common: the group they look at, and the search.

Layers `W` that are given one input `x` do not change when the input is `x / s` and they are `W s`, with `s > 0` for
each channel. Rounding does: the channels that `s` makes larger in the weights are rounded better, those that it makes
smaller in the input leave the others more of its range.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from zeropoint.algorithms import rtn
from zeropoint.reference.linear import quantize_activations
from zeropoint.values.qtensor import Floats
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: The most that one channel is scaled against the geometric mean of all.
MOST = 1e3

#: Channels count as at least this part of the largest: one that was silent on the sample is not scaled without end.
FLOOR = 1e-5

#: Outputs of each layer, evenly spaced, by which candidates are compared: the error is a mean over them.
ROWS = 256

#: How candidates are rounded while they are compared: a short search of `rtn`, weighed by the scaled input.
ROUNDING = rtn.Options(steps=3)


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Layers that are given one input, and what makes it.

    - `weights`: float32 `[out, in]` each;
    - `inputs`: float32 `[tokens, in]`, a sample of what they are given;
    - `source`: `[in]`, the channel of the maker that each input channel comes from: those of one share a scale.
    """

    weights: tuple[Floats, ...]
    inputs: Floats
    source: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """`scale` `[in]`: what the input is divided and the weights' columns are multiplied by; all 1 where nothing helps.

    `before` and `after` are the relative squared errors of a sample of outputs without and with it, summed over the
    layers.
    """

    scale: Floats
    before: float
    after: float


def search(group: Group, stats: LayerStats, scheme: Scheme, candidates: Iterable[Floats]) -> Fold:
    """The candidate `[in]` of the least output error, or none of them."""
    if scheme.granularity != "tensor":  # there, all rows share a scale
        group = replace(group, weights=tuple(weight[:: -(-len(weight) // ROWS)] for weight in group.weights))
    ones = np.ones(group.inputs.shape[1], np.float32)
    before = output_error(group, stats, scheme, ones)
    best, least = ones, before
    for candidate in candidates:
        scale = balanced(candidate, group.source)
        error = output_error(group, stats, scheme, scale)
        if error < least:
            best, least = scale, error
    return Fold(best, before, least)


def balanced(scale: Floats, source: NDArray[np.intp]) -> Floats:
    """A scale of geometric mean 1 and bounded range, the same for all channels of one source."""
    logs = np.log(np.maximum(scale, scale.max() * np.float32(1e-9) + np.float32(1e-30)).astype(np.float64))
    logs = (np.bincount(source, logs) / np.maximum(np.bincount(source), 1))[source]
    logs -= logs.mean()
    return np.exp(np.clip(logs, -np.log(MOST), np.log(MOST))).astype(np.float32)


def output_error(group: Group, stats: LayerStats, scheme: Scheme, scale: Floats) -> float:
    """Squared error of each layer's output over its square, summed: of rounded weights, and of rounded inputs where
    the scheme rounds those to 8 bits."""
    inputs = (group.inputs / scale).astype(np.float32)
    x = torch.from_numpy(inputs)
    moved: torch.Tensor | None = None
    if scheme.activation is not None and scheme.activation.bits == 8:
        codes, steps = quantize_activations(inputs, scheme.activation)
        size = scheme.activation.group_size or inputs.shape[1]
        rounded = codes * np.repeat(steps, size, axis=1)[:, : inputs.shape[1]]
        moved = torch.from_numpy(rounded.astype(np.float32) - inputs)
    told = LayerStats((stats.second_moment / np.square(scale)).astype(np.float32), stats.count)
    total = 0.0
    for weight in group.weights:
        scaled = (weight * scale).astype(np.float32)
        made = torch.from_numpy(rtn.quantize(scaled, told, scheme, ROUNDING).dequantize())
        exact = torch.from_numpy(scaled)
        error = x @ (made - exact).T  # differences, so that products of reduced precision do
        if moved is not None:
            error += moved @ made.T
        total += float(error.square().sum() / (x @ exact.T).square().sum().clamp_min(1e-30))
    return total


def floored(sizes: Floats) -> Floats:
    """Sizes of channels, none of them 0."""
    raised: Floats = np.maximum(sizes, np.float32(FLOOR) * sizes.max() + np.float32(1e-30))
    return raised
