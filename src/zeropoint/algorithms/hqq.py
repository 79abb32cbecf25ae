"""HQQ: find the grid that minimizes `sum |error|^p`, by half-quadratic splitting; no text needed.

Idea (Badri and Shaji 2023, "Half-Quadratic Quantization"): with squared errors, a few outliers decide a group's grid;
`sum |W - W'|^p` with p < 2 gives them less weight. The problem is split into two that are solved in turns. The first
computes outlier errors `E = sign(x) max(|x| - |x|^(p-1) / beta, 0)` from the errors x (shrinkage: small errors become
0). The second fits the grid to `W - E` by least squares. `beta` grows from turn to turn. Errors are measured in steps
of the grid, so no option depends on the size of the weights.

Differences from the paper:

- The paper fits a fractional zero point and keeps the min-max scale. Here zero points are integers, and a fractional
  zero point rounded to an integer does no better than min-max. So the scale is fitted, with the nearest integer zero
  point.
- An error's effect on the output is its product with the input x. So `|error|^p` is weighted by `E[x^2]^(p/2)`, from
  the second moments that `rtn` uses too; an outlier on a large input channel keeps its weight.
- The first turn starts from the grid of `rtn`. Each turn's grid is judged after rounding to its stored type, and the
  grid with the lowest norm is returned (per group, or per row with two-level scales). So the norm is never above that
  of `rtn`'s grid.
- p is 1.5 instead of 0.7. The paper measures errors in the unit of the weights, where every error below 0.17 shrinks to
  0; weight errors are that small, so the paper's method reduces to least squares. In steps of the grid the shrinkage
  has an effect, and p = 0.7 then has a higher loss (docs/decisions/hqq-norm.md).

Cost: `iterations` times five passes over the weights in cache; 135 M weights take half a minute on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zeropoint.algorithms import rtn
from zeropoint.kernels import grid
from zeropoint.reference import rounding
from zeropoint.values.arrays import Floats
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

NEEDS: frozenset[str] = rtn.NEEDS


@dataclass(frozen=True, slots=True)
class Options:
    """HQQ's options.

    - `norm`: p;
    - `weighted`: weight the errors by the second moments of the layer's input;
    - `beta`, `growth`: the first beta, and the factor by which beta grows after each turn;
    - `iterations`: number of turns.
    """

    norm: float = 1.5
    weighted: bool = True
    beta: float = 10.0
    growth: float = 1.05
    iterations: int = 20


def needs(scheme: Scheme, options: Options) -> frozenset[str]:
    """Return the statistics that `quantize` uses for a weight of this scheme."""
    return rtn.needs(scheme, _start(options))


def quantize(weight: Any, stats: LayerStats | None, scheme: Scheme, options: Options) -> QuantizedTensor:
    """Quantize a float array or CPU tensor `[out, in]`, with errors weighted by `stats` (None: all equal).

    Raises `SchemeError` if a scale overflows its type, `CheckpointError` if the weight holds NaN or inf.
    """
    weight = np.asarray(weight, dtype=np.float32)
    scale, zero_point = rtn.find_grid(weight, stats, scheme, _start(options))
    if weight.size:
        counts = np.ones((1, 1, 1), np.float32)
        if stats is not None and needs(scheme, options):
            importance = rtn.importance_of(stats) ** np.float32(options.norm / 2)
            counts = rounding.grouped(importance[None], scheme)
        zero = np.zeros_like(scale) if zero_point is None else zero_point.astype(np.float32)
        for rows, groups in grid.pieces(weight, scheme):
            scale[rows], zero[rows] = fit(groups, counts, scale[rows], zero[rows], scheme, options)
        zero_point = None if zero_point is None else zero.astype(np.int8)
    return rounding.quantize(weight, scheme, scale=scale, zero_point=zero_point)


def fit(
    groups: Floats, counts: Floats, scale: Floats, zero: Floats, scheme: Scheme, options: Options
) -> tuple[Floats, Floats]:
    """Return scales and zero points `[rows, groups]` for the weights `groups` `[rows, groups, size]`.

    The search starts from the grid `scale`, `zero`. `counts` `[1, groups, size]` or `[1, 1, 1]` is the weight of
    `|error|^norm`.
    """
    best, best_zero, least_loss = scale, zero, np.full_like(scale, np.inf)
    total = np.broadcast_to(counts, groups.shape).sum(axis=2)
    beta = options.beta
    for _ in range(options.iterations + 1):
        with np.errstate(
            all="ignore"
        ):  # extreme weights overflow, and the comparison below rejects the result
            steps, offset = groups / scale[..., None], zero[..., None]
            codes = np.clip(np.rint(steps) + offset, scheme.qmin, scheme.qmax)
            errors = steps - (codes - offset)
            powers = np.abs(errors) ** np.float32(options.norm)
            loss = (powers * counts).sum(axis=2) * np.abs(scale) ** np.float32(options.norm)
            if (
                scheme.scale_dtype == "nested"
            ):  # a row's scales share one base, so they must come from the same turn
                loss = np.broadcast_to(loss.sum(axis=1, keepdims=True), loss.shape)
            better = loss < least_loss
            best, best_zero = np.where(better, scale, best), np.where(better, zero, best_zero)
            least_loss = np.where(better, loss, least_loss)
            target = steps - _shrink(errors, powers, beta)
            if not scheme.symmetric:
                mean = ((codes - target) * counts).sum(axis=2) / total
                zero = np.where(np.isfinite(mean), np.clip(np.rint(mean), scheme.qmin, scheme.qmax), zero)
            levels = codes - zero[..., None]
            counted = levels * counts
            fitted = scale * (counted * target).sum(axis=2) / (counted * levels).sum(axis=2)
            usable = np.isfinite(fitted.astype(rounding.STORAGE[scheme.scale_dtype])) & (fitted != 0)
        scale = rounding.round_scale(
            np.where(usable, fitted, scale), scheme.scale_dtype, multiples=scheme.max_multiple
        )
        beta *= options.growth
    return best, best_zero


def _shrink(errors: Floats, powers: Floats, beta: float) -> Floats:
    """Return the outlier part of each error, in steps of the grid; `powers` is `|errors|^norm`."""
    sizes = np.abs(errors)
    shrunk = np.maximum(sizes - powers / sizes / np.float32(beta), 0)
    return np.copysign(np.where(sizes > 0, shrunk, 0), errors)


def _start(options: Options) -> rtn.Options:
    """Return the `rtn` options of the search for the starting grid."""
    return rtn.Options(weighted=options.weighted)
