"""HQQ equals a naive implementation that goes group by group and weight by weight, and forgives outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.algorithms.test_contract import weights
from zeropoint.algorithms import hqq
from zeropoint.reference.rounding import grouped, quantize_min_max
from zeropoint.scheme import Scheme, parse


def naive(
    group: list[float], scale: float, zero: float, scheme: Scheme, options: hqq.Options
) -> tuple[float, float]:
    """One group in Python floats."""
    best, least, beta = (scale, zero), math.inf, options.beta
    for _ in range(options.iterations + 1):
        codes = [min(max(round(w / scale) + zero, scheme.qmin), scheme.qmax) for w in group]
        errors = [w / scale - (q - zero) for w, q in zip(group, codes, strict=True)]
        loss = sum(abs(e * scale) ** options.norm for e in errors)
        if loss < least * (1 - 1e-6):
            best, least = (scale, zero), loss
        wanted = []
        for w, e in zip(group, errors, strict=True):
            shrunk = max(abs(e) - abs(e) ** (options.norm - 1) / beta, 0) if e else 0.0
            wanted.append(w - math.copysign(shrunk, e) * scale)
        if not scheme.symmetric:
            mean = sum(q - w / scale for q, w in zip(codes, wanted, strict=True)) / len(group)
            zero = min(max(round(mean), scheme.qmin), scheme.qmax)
        square = sum((q - zero) ** 2 for q in codes)
        if square:
            fitted = sum((q - zero) * w for q, w in zip(codes, wanted, strict=True)) / square
            scale = fitted if abs(fitted) > 1e-30 else scale
        beta *= options.growth
    return best


@pytest.mark.parametrize("text", ["int4:g24:sym:fp32", "int4:g24:asym:fp32", "int3:channel:sym:fp32"])
def test_it_is_the_naive_algorithm(text: str) -> None:
    scheme, options = parse(text), hqq.Options(iterations=6)
    values = np.random.default_rng(0).standard_t(4, (12, 72)).astype(np.float32)
    plain = quantize_min_max(values, scheme)
    made = hqq.quantize(values, None, scheme, options)
    for row, groups in enumerate(grouped(values, scheme)):
        for column, group in enumerate(groups):
            zero = 0 if plain.zero_point is None else int(plain.zero_point[row, column])
            start = float(plain.scale[row, column])
            scale, found = naive([float(w) for w in group], start, zero, scheme, options)
            assert made.scale[row, column] == pytest.approx(scale, rel=1e-4)
            assert (0 if made.zero_point is None else made.zero_point[row, column]) == found


@pytest.mark.parametrize("text", ["int4:g32", "int4:g32:asym", "int4:channel", "int8"])
def test_the_norm_never_rises(text: str) -> None:
    scheme, values = parse(f"{text}:fp32" if text.endswith("sym") else f"{text}:sym:fp32"), weights()
    plain, made = quantize_min_max(values, scheme), hqq.quantize(values, None, scheme, hqq.Options())
    before, after = (
        (np.abs(grouped(each.dequantize() - values, scheme)) ** 0.7).sum() for each in (plain, made)
    )
    assert after <= before * (1 + 1e-5)
