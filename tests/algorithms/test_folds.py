"""The searches of SmoothQuant and AWQ equal naive ones, and help where they should."""

from __future__ import annotations

import numpy as np
import pytest

from zeropoint.algorithms import awq, rtn, smoothquant
from zeropoint.algorithms._folds import ROUNDING, Group
from zeropoint.reference.linear import linear
from zeropoint.values.scheme import Scheme, parse
from zeropoint.values.stats import LayerStats

INT8, INT4 = parse("int8:channel:sym:bf16:a8token"), parse("int4:channel:sym:bf16")


def loud(seed: int = 0) -> tuple[Group, LayerStats]:
    """Inputs of which two channels are far larger than the rest."""
    random = np.random.default_rng(seed)
    inputs = random.standard_normal((64, 48)).astype(np.float32)
    inputs[:, [3, 17]] *= 80
    weights = tuple(random.standard_normal((rows, 48)).astype(np.float32) / 7 for rows in (32, 16))
    return Group(weights, inputs, np.arange(48)), LayerStats(np.square(inputs).sum(axis=0), 64)


def naive_error(group: Group, stats: LayerStats, scheme: Scheme, scale: np.ndarray) -> float:
    """By the reference's own product, weight by weight."""
    total = 0.0
    for weight in group.weights:
        told = LayerStats(stats.second_moment / scale**2, stats.count)
        made = rtn.quantize(weight * scale, told, scheme, ROUNDING)
        exact = group.inputs.astype(np.float64) @ weight.T.astype(np.float64)
        total += float(np.square(linear(group.inputs / scale, made) - exact).sum() / np.square(exact).sum())
    return total


def unit(scale: np.ndarray) -> np.ndarray:
    return np.asarray(scale / np.exp(np.log(scale.astype(np.float64)).mean()), np.float32)


def test_smoothquant_is_the_naive_search() -> None:
    group, stats = loud()
    given = np.abs(group.inputs).max(axis=0)
    taken = np.maximum(*(np.abs(weight).max(axis=0) for weight in group.weights))
    tried = [unit(given**a / taken ** (1 - a)) for a in np.linspace(0.4, 0.9, 6)]
    errors = [naive_error(group, stats, INT8, scale) for scale in tried]
    made = smoothquant.fold(group, stats, INT8, smoothquant.Options())
    np.testing.assert_allclose(made.scale, tried[int(np.argmin(errors))], rtol=1e-4)
    assert made.after == pytest.approx(min(errors), rel=1e-2)
    assert made.after < 0.2 * made.before


def test_awq_is_the_naive_search() -> None:
    group, stats = loud()
    sizes = np.abs(group.inputs).mean(axis=0)
    tried = [unit(sizes**a) for a in np.linspace(0, 0.75, 7)[1:]]
    errors = [naive_error(group, stats, INT4, scale) for scale in tried]
    made = awq.fold(group, stats, INT4, awq.Options())
    np.testing.assert_allclose(made.scale, tried[int(np.argmin(errors))], rtol=1e-4)
    assert made.after == pytest.approx(min(errors), rel=1e-2)
    assert made.after < made.before
