"""Round to nearest, with a search for the scale (and zero point) of least squared error. No text needed.

Idea: covering the extremes of a group wastes codes on them. Of a few candidate ranges, the one whose levels fit the
group best wins (`kernels/grid.py`). Below 8 bits the symmetric grid is not symmetric (-8..7), so the candidates put
the largest weight on the longer side, by a negative scale where it is positive. The scale is then rounded to its
stored type, and kept only where it still beats that of plain min-max rounding: the search never loses to it.

Where the second moments of the layer's input channels are known, errors are weighted by them: an error in a weight
costs what its input is worth (llama.cpp's "imatrix", AWQ's observation, arXiv:2306.00978). On SmolLM2-135M this takes a
third off the KL divergence, at 4 bits and at 8.

Cost: about 10 (symmetric) or 20 (asymmetric) passes over the weights in cache, by a native kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zeropoint.kernels import grid
from zeropoint.reference import rounding
from zeropoint.values.qtensor import Codes, Floats, QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

#: Statistics of the layer's input this algorithm can use.
NEEDS: frozenset[str] = frozenset({"second_moment"})

#: Every channel counts at least this part of the mean: a channel that was silent on the sample may speak later.
FLOOR = 1e-3

#: Tried as well where the range is symmetric, just beyond the end of the grid: the largest weight may round down to it.
BEYOND = 1.06


@dataclass(frozen=True, slots=True)
class Options:
    """`search`: look for the best scale (otherwise min-max). `weighted`: weigh errors by the layer's inputs.
    `steps`: ranges tried per end. `shrink`: the narrowest range tried, as a part of the full one."""

    search: bool = True
    weighted: bool = True
    steps: int = 8
    shrink: float = 0.7


def needs(scheme: Scheme, options: Options) -> frozenset[str]:
    """The statistics that `quantize` uses for such a weight."""
    return NEEDS if options.search and options.weighted and scheme.granularity != "tensor" else frozenset()


def quantize(weight: Any, stats: LayerStats | None, scheme: Scheme, options: Options) -> QuantizedTensor:
    """Quantize a finite float `[out, in]` array or CPU tensor, weighing errors by `stats` where there are any.

    Raises `SchemeError` when a scale overflows its type, `CheckpointError` on NaN or inf.
    """
    weight = np.asarray(weight, dtype=np.float32)
    scale, zero_point = find_grid(weight, stats, scheme, options)
    return rounding.quantize(weight, scheme, scale=scale, zero_point=zero_point)


def find_grid(
    weight: Floats, stats: LayerStats | None, scheme: Scheme, options: Options
) -> tuple[Floats, Codes | None]:
    """The scales and zero points that `quantize` rounds a float32 weight by, and the errors that it raises."""
    rounding.check_finite(weight, "the tensor")
    if not options.search or not weight.size:
        return rounding.affine_parameters(*rounding.group_range(weight, scheme), scheme)
    importance = importance_of(stats) if stats is not None and needs(scheme, options) else None
    found = grid.search(weight, scheme, importance, _parts(scheme, options))
    scale, zero_point = rounding.affine_parameters(found.low, found.high, scheme)
    usable = np.isfinite(found.scale) & (found.scale != 0)
    # Nested scales are rounded a row at a time, when all of its groups are known.
    better = rounding.round_scale(np.where(usable, found.scale, scale), scheme.plain_scale_dtype)
    zero = np.zeros_like(scale) if zero_point is None else zero_point.astype(np.float32)
    error = grid.errors(weight, scheme, importance, np.stack([better, scale]), np.stack([found.zero, zero]))
    wins = error[0] < error[1]
    better = np.where(wins, better, scale)
    if scheme.scale_dtype == "nested":
        return _nest(weight, better, scale, importance, scheme), None
    return better, None if zero_point is None else np.where(wins, found.zero, zero).astype(np.int8)


def _parts(scheme: Scheme, options: Options) -> Floats:
    """The parts of a group's range that are tried."""
    parts = np.linspace(1.0, options.shrink, max(options.steps, 1), dtype=np.float32)
    if scheme.symmetric:
        return np.concatenate([np.array([BEYOND], np.float32), parts])
    return parts[::2]  # both ends are searched: half the steps each, squared


def importance_of(stats: LayerStats) -> Floats:
    """What an error in each column counts, `[in]`, 1 on average."""
    moments = stats.second_moment.astype(np.float64)
    mean = float(moments.mean())
    if mean <= 0:
        moments, mean = np.ones_like(moments), 1.0
    return (moments / mean + FLOOR).astype(np.float32)


def _nest(weight: Floats, wanted: Floats, plain: Floats, importance: Floats | None, scheme: Scheme) -> Floats:
    """Nested scales `[rows, groups]` near the `wanted` ones: of the multiples next to each, the one of least error.

    A row that does worse than with `plain` scales takes those.
    """
    base = rounding.nested_base(wanted, scheme.max_multiple)
    below = np.floor(np.abs(wanted) / base)
    tried = [
        np.copysign(np.clip(below + step, 1, scheme.max_multiple) * base, wanted).astype(np.float32)
        for step in (-1, 0, 1, 2)
    ]
    error = grid.errors(weight, scheme, importance, np.stack([*tried, plain]), None)
    best, least = plain, np.full_like(plain, np.inf)
    for scale, cost in zip(tried, error[:-1], strict=True):
        best, least = np.where(cost < least, scale, best), np.minimum(cost, least)
    wins = least.sum(axis=1, keepdims=True) < error[-1].sum(axis=1, keepdims=True)
    return np.where(wins, best, plain)
