"""HQQ: the grid of the least `sum |error|^p`, by half-quadratic splitting. No text needed.

Idea (Badri and Shaji 2023, "Half-Quadratic Quantization"): squared errors let a few outliers decide a group's grid,
`sum |W - W'|^p` with a smaller p forgives them. It is split: errors `E` of their own, which the shrinkage
`sign(x) max(|x| - |x|^(p-1) / beta, 0)` leaves to outliers alone, and a grid fitted to `W - E` by least squares. The
two take turns while `beta` grows. Errors are measured in steps of the grid: no option depends on a weight's size.

Where this departs from the paper, and why:

- There a fractional zero point is fitted beside the scale of min-max. All that it gains lies between two whole ones:
  rounded, it does as min-max does. Formats here have whole zero points, or none, so what is fitted is the scale, and
  with it the nearest whole zero point.
- An outlier on a loud input channel is not to be forgiven. What an error gives in the output is its product with the
  input x, so that `|error|^p` counts `E[x^2]^(p/2)`, from the second moments that `rtn` weighs its search by.
- Turns begin at `rtn`'s grid, and each is judged as it will be stored. The grid of the least norm is taken, of a row
  where its scales are nested: the norm is never above that of `rtn`'s grid.
- p is 1.5, not 0.7. There errors are measured in the weights' unit, in which the shrinkage leaves nothing below 0.17
  and so never acts: what runs is least squares. In steps it acts, and 0.7 then loses more (docs/algorithms.md).

Cost: `iterations` times five passes over the weights in cache; 135 M weights take half a minute on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zeropoint.algorithms import rtn
from zeropoint.kernels import grid
from zeropoint.reference import rounding
from zeropoint.values.qtensor import Floats, QuantizedTensor
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

NEEDS: frozenset[str] = rtn.NEEDS


@dataclass(frozen=True, slots=True)
class Options:
    """`norm`: p. `weighted`: weigh errors by the layer's inputs. `beta`, `growth`: the first beta and what it is
    multiplied by after each of the `iterations`."""

    norm: float = 1.5
    weighted: bool = True
    beta: float = 10.0
    growth: float = 1.05
    iterations: int = 20


def needs(scheme: Scheme, options: Options) -> frozenset[str]:
    """The statistics that `quantize` uses for such a weight."""
    return rtn.needs(scheme, _start(options))


def quantize(weight: Any, stats: LayerStats | None, scheme: Scheme, options: Options) -> QuantizedTensor:
    """Quantize a finite float `[out, in]` array or CPU tensor, weighing errors by `stats` where there are any.

    Raises `SchemeError` when a scale overflows its type, `CheckpointError` on NaN or inf.
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
    """Scales and zero points `[rows, groups]` for groups `[rows, groups, size]`, from those of another grid.

    `counts` `[1, groups, size]`, or ones, is what an error to the power of `norm` counts.
    """
    best, best_zero, least = scale, zero, np.full_like(scale, np.inf)
    total = np.broadcast_to(counts, groups.shape).sum(axis=2)
    beta = options.beta
    for _ in range(options.iterations + 1):
        with np.errstate(all="ignore"):  # extreme weights overflow, and then simply do not win
            steps, offset = groups / scale[..., None], zero[..., None]
            codes = np.clip(np.rint(steps) + offset, scheme.qmin, scheme.qmax)
            errors = steps - (codes - offset)
            powers = np.abs(errors) ** np.float32(options.norm)
            loss = (powers * counts).sum(axis=2) * np.abs(scale) ** np.float32(options.norm)
            if scheme.scale_dtype == "nested":  # multiples of one number: all of a row from one turn
                loss = np.broadcast_to(loss.sum(axis=1, keepdims=True), loss.shape)
            better = loss < least
            best, best_zero = np.where(better, scale, best), np.where(better, zero, best_zero)
            least = np.where(better, loss, least)
            wanted = steps - _shrink(errors, powers, beta)
            if not scheme.symmetric:
                mean = ((codes - wanted) * counts).sum(axis=2) / total
                zero = np.where(np.isfinite(mean), np.clip(np.rint(mean), scheme.qmin, scheme.qmax), zero)
            levels = codes - zero[..., None]
            counted = levels * counts
            fitted = scale * (counted * wanted).sum(axis=2) / (counted * levels).sum(axis=2)
            usable = np.isfinite(fitted.astype(rounding.STORAGE[scheme.scale_dtype])) & (fitted != 0)
        scale = rounding.round_scale(
            np.where(usable, fitted, scale), scheme.scale_dtype, multiples=scheme.max_multiple
        )
        beta *= options.growth
    return best, best_zero


def _shrink(errors: Floats, powers: Floats, beta: float) -> Floats:
    """The part of each error, in steps, that is an outlier's; `powers` are their sizes to the power of the norm."""
    sizes = np.abs(errors)
    forgiven = np.maximum(sizes - powers / sizes / np.float32(beta), 0)
    return np.copysign(np.where(sizes > 0, forgiven, 0), errors)


def _start(options: Options) -> rtn.Options:
    """The search whose grid is the first turn's."""
    return rtn.Options(weighted=options.weighted)
