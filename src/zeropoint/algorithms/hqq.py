"""HQQ: the scale and zero point that leave most errors small, by half-quadratic splitting. No text needed.

Idea (Badri and Shaji 2023, "Half-Quadratic Quantization"): squared errors let a few outliers decide a group's grid.
`sum |W - W'|^p` with `p < 1` forgives them. It is split: errors `E` of their own, which the shrinkage
`sign(x) max(|x| - |x|^(p-1) / beta, 0)` leaves to outliers alone, and a grid fitted to `W - E` by least squares. The
two take turns while `beta` grows. Errors are measured in steps of the grid: no option depends on a weight's size.

The paper fits a fractional zero point. Formats here have whole ones, or none: what is fitted is the scale, and with it
the nearest whole zero point where there is one. The grid of the least `sum |W - W'|^p` among all turns is taken.

Cost: `iterations` times five passes over the weights in cache; 135 M weights take a minute on one core.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.qtensor import Floats, QuantizedTensor
from zeropoint.reference import rounding
from zeropoint.scheme import Scheme
from zeropoint.stats import LayerStats

NEEDS: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Options:
    """`norm`: p. `beta`, `growth`: the first beta and what it is multiplied by after each of the `iterations`."""

    norm: float = 0.7
    beta: float = 10.0
    growth: float = 1.05
    iterations: int = 20


def needs(scheme: Scheme, options: Options) -> frozenset[str]:
    """The statistics that `quantize` uses: none."""
    return NEEDS


def quantize(weight: Any, stats: LayerStats | None, scheme: Scheme, options: Options) -> QuantizedTensor:
    """Quantize a finite float `[out, in]` array or CPU tensor.

    Raises `SchemeError` when a scale overflows its type, `CheckpointError` on NaN or inf.
    """
    weight = np.asarray(weight, dtype=np.float32)
    plain = rounding.quantize_min_max(weight, scheme)
    if not weight.size:
        return plain
    groups = rounding.grouped(weight, scheme)
    flat = groups.reshape(-1, groups.shape[2])
    zeros = np.zeros_like(plain.scale) if plain.zero_point is None else plain.zero_point.astype(np.float32)
    scale, zero = plain.scale.reshape(-1, 1).copy(), zeros.reshape(-1, 1).copy()
    for piece in rounding.pieces(flat):
        scale[piece], zero[piece] = fit(flat[piece], scale[piece], zero[piece], scheme, options)
    stored = rounding.round_scale(
        scale.reshape(plain.scale.shape), scheme.scale_dtype, multiples=scheme.max_multiple
    )
    if plain.zero_point is None:
        return rounding.quantize(weight, scheme, scale=stored)
    return rounding.quantize(
        weight, scheme, scale=stored, zero_point=zero.reshape(plain.scale.shape).astype(np.int8)
    )


def fit(
    groups: Floats, scale: Floats, zero: Floats, scheme: Scheme, options: Options
) -> tuple[Floats, Floats]:
    """Scale and zero point `[n, 1]` for groups `[n, size]`, from those of another grid."""
    best, best_zero = scale, zero
    least = np.full_like(scale, np.inf)
    beta = options.beta
    for _ in range(options.iterations + 1):
        with np.errstate(all="ignore"):  # extreme weights overflow, and then simply do not win
            codes = np.clip(np.rint(groups / scale) + zero, scheme.qmin, scheme.qmax)
            errors = groups / scale - (codes - zero)
            sizes = np.abs(errors)
            loss = ((sizes**options.norm).sum(axis=1, keepdims=True)) * np.abs(scale) ** options.norm
            better = loss < least
            best, best_zero = np.where(better, scale, best), np.where(better, zero, best_zero)
            least = np.where(better, loss, least)
            shrunk = np.sign(errors) * np.maximum(sizes - sizes ** (options.norm - 1) / beta, 0)
            wanted = groups - np.nan_to_num(shrunk) * scale
            if not scheme.symmetric:
                zero = np.clip(
                    np.rint((codes - wanted / scale).mean(axis=1, keepdims=True)), scheme.qmin, scheme.qmax
                )
            levels = codes - zero
            fitted = (levels * wanted).sum(axis=1, keepdims=True) / (levels * levels).sum(
                axis=1, keepdims=True
            )
            scale = np.where(_usable(fitted), fitted, scale).astype(np.float32)
            zero = np.where(np.isfinite(zero), zero, best_zero).astype(np.float32)
        beta *= options.growth
    return best, best_zero


def _usable(scale: NDArray[Any]) -> NDArray[np.bool_]:
    usable: NDArray[np.bool_] = np.isfinite(scale) & (np.abs(scale) > 1e-30)
    return usable
