"""HQQ equals a naive implementation that goes group by group and weight by weight, and never loses to its start."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.algorithms.test_contract import weights
from zeropoint.algorithms import hqq, rtn
from zeropoint.reference.rounding import grouped, quantize_min_max
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Scheme, parse
from zeropoint.values.stats import LayerStats


def statistics(columns: int = 72) -> LayerStats:
    """Input channels of which some are hundreds of times larger than others."""
    return LayerStats(np.random.default_rng(1).lognormal(0, 2, columns).astype(np.float32), 100)


def naive(
    group: list[float],
    counts: list[float],
    scale: float,
    zero: float,
    scheme: Scheme,
    options: hqq.Options,
) -> tuple[float, float]:
    """One group in Python floats."""
    best, least, beta = (scale, zero), math.inf, options.beta
    for _ in range(options.iterations + 1):
        codes = [min(max(round(w / scale) + zero, scheme.qmin), scheme.qmax) for w in group]
        errors = [w / scale - (q - zero) for w, q in zip(group, codes, strict=True)]
        loss = sum(c * abs(e * scale) ** options.norm for c, e in zip(counts, errors, strict=True))
        if loss < least * (1 - 1e-6):
            best, least = (scale, zero), loss
        wanted = []
        for w, e in zip(group, errors, strict=True):
            shrunk = max(abs(e) - abs(e) ** (options.norm - 1) / beta, 0) if e else 0.0
            wanted.append(w - math.copysign(shrunk, e) * scale)
        if not scheme.symmetric:
            apart = sum(c * (q - w / scale) for c, q, w in zip(counts, codes, wanted, strict=True))
            zero = min(max(round(apart / sum(counts)), scheme.qmin), scheme.qmax)
        square = sum(c * (q - zero) ** 2 for c, q in zip(counts, codes, strict=True))
        if square:
            product = sum(c * (q - zero) * w for c, q, w in zip(counts, codes, wanted, strict=True))
            scale = product / square or scale
        beta *= options.growth
    return best


@pytest.mark.parametrize(("norm", "weighted"), [(0.7, True), (0.7, False), (1.5, True)])
@pytest.mark.parametrize("text", ["int4:g24:sym:fp32", "int4:g24:asym:fp32", "int3:channel:sym:fp32"])
def test_it_is_the_naive_algorithm(text: str, norm: float, weighted: bool) -> None:
    scheme, options = parse(text), hqq.Options(norm, weighted, iterations=6)
    values, stats = np.random.default_rng(0).standard_t(4, (12, 72)).astype(np.float32), statistics()
    start = rtn.quantize(values, stats, scheme, rtn.Options(weighted=weighted))
    made = hqq.quantize(values, stats, scheme, options)
    power = options.norm / 2 if weighted else 0
    importance = rtn.importance_of(stats).astype(float) ** power
    counts = grouped(importance[None], scheme)[0]
    changed = 0
    for row, groups in enumerate(grouped(values, scheme)):
        for column, group in enumerate(groups):
            zero = 0 if start.zero_point is None else int(start.zero_point[row, column])
            begin = float(start.scale[row, column])
            wanted = naive(list(map(float, group)), list(counts[column]), begin, zero, scheme, options)
            found = 0 if made.zero_point is None else made.zero_point[row, column]
            assert (made.scale[row, column], found) == pytest.approx(wanted, rel=1e-4)
            changed += made.scale[row, column] != start.scale[row, column]
    assert changed > 3


def norm(made: QuantizedTensor, values: np.ndarray, stats: LayerStats) -> np.ndarray:
    """Of each row."""
    counts = rtn.importance_of(stats).astype(np.float64) ** 0.75
    return (np.abs(made.dequantize().astype(np.float64) - values) ** 1.5 * counts).sum(axis=1)


@pytest.mark.parametrize(
    "text", ["int4:g32", "int4:g32:asym", "int4:channel", "int4:g24:nested", "int5:g24:nested"]
)
def test_the_norm_is_never_above_that_of_the_search(text: str) -> None:
    scheme, values, stats = parse(text), weights(), statistics()
    start = rtn.quantize(values, stats, scheme, rtn.Options())
    made = hqq.quantize(values, stats, scheme, hqq.Options())
    before, after = norm(start, values, stats), norm(made, values, stats)
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()


@pytest.mark.parametrize("text", ["int4:g24:asym", "int4:g24", "int4:g24:nested", "int3:channel"])
def test_loud_channels_lose_less_than_by_covering_the_range(text: str) -> None:
    """What is to be small is the error of the output, which an unweighted norm takes no notice of."""
    scheme, stats = parse(text), statistics()
    values = np.random.default_rng(0).standard_t(4, (64, 72)).astype(np.float32)

    def loss(made: QuantizedTensor) -> float:
        return float((np.square(made.dequantize() - values) * stats.second_moment).sum())

    made = hqq.quantize(values, stats, scheme, hqq.Options())
    assert loss(made) < 0.8 * loss(quantize_min_max(values, scheme))


def test_without_statistics_errors_count_alike() -> None:
    scheme, values = parse("int4:g24:asym"), weights()
    alike = hqq.quantize(values, statistics(), scheme, hqq.Options(weighted=False))
    made = hqq.quantize(values, None, scheme, hqq.Options())
    np.testing.assert_array_equal(made.codes, alike.codes)
    np.testing.assert_array_equal(made.scale, alike.scale)
    assert not hqq.needs(scheme, hqq.Options(weighted=False))
    assert hqq.needs(scheme, hqq.Options()) == {"second_moment"}
