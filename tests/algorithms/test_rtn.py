"""The scale search beats plain rounding, never loses to it, and heeds the inputs it is told of."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.algorithms.test_contract import weights
from zeropoint.algorithms.rtn import Options, quantize
from zeropoint.reference.rounding import grouped, quantize_min_max
from zeropoint.values.scheme import Scheme, parse
from zeropoint.values.stats import LayerStats


def group_errors(weight: np.ndarray, made: object, scheme: Scheme) -> np.ndarray:
    difference = made.dequantize().astype(np.float64) - weight  # type: ignore[attr-defined]
    return (grouped(difference, scheme) ** 2).sum(axis=2)


@pytest.mark.parametrize(
    ("text", "gain"), [("int4:g32", 0.85), ("int4:g32:asym", 0.98), ("int3:g32", 0.8), ("int4:channel", 0.85)]
)
def test_search_gains(text: str, gain: float) -> None:
    scheme, values = parse(text), np.random.default_rng(0).standard_t(5, (256, 256)).astype(np.float32)
    found, plain = (quantize(values, None, scheme, Options(search=search)) for search in (True, False))
    ratio = np.linalg.norm(found.dequantize() - values) / np.linalg.norm(plain.dequantize() - values)
    assert ratio < gain


@given(
    hnp.arrays(np.float32, (3, 40), elements=st.floats(-(2.0**100), 2.0**100, width=32)),
    st.sampled_from(["int4:g32", "int4:g16:asym", "int8", "int2:channel:asym", "int3:tensor"]),
)
def test_search_never_loses_to_min_max(values: np.ndarray, text: str) -> None:
    scheme = parse(text)
    found = group_errors(values, quantize(values, None, scheme, Options()), scheme)
    plain = group_errors(values, quantize_min_max(values, scheme), scheme)
    assert (found <= plain * (1 + 1e-4)).all()


def test_without_search_it_is_min_max() -> None:
    scheme = parse("int4:g32:asym")
    made, plain = (
        quantize(weights(), None, scheme, Options(search=False)),
        quantize_min_max(weights(), scheme),
    )
    np.testing.assert_array_equal(made.codes, plain.codes)


def test_constant_groups_are_nearly_exact() -> None:
    values = np.full((4, 64), 0.3, np.float32)
    for text in ("int4:g32", "int4:g32:asym", "int8", "int2:g32"):
        made = quantize(values, None, parse(text), Options())
        assert np.abs(made.dequantize() - values).max() <= 0.3 * 2**-8  # the rounding of a bf16 scale


def test_loud_channels_are_kept_exact() -> None:
    values = np.random.default_rng(1).standard_normal((64, 64)).astype(np.float32)
    moments = np.ones(64, np.float32)
    moments[5] = 1e6
    scheme = parse("int4:g32")
    told = quantize(values, LayerStats(moments, 1), scheme, Options())
    untold = quantize(values, None, scheme, Options())
    errors = [np.abs(made.dequantize()[:, 5] - values[:, 5]).mean() for made in (told, untold)]
    assert errors[0] < errors[1] / 5


def test_eight_bits_have_positive_scales() -> None:
    assert (quantize(weights(), None, parse("int8"), Options()).scale > 0).all()


def test_silent_inputs_do_no_harm() -> None:
    scheme = parse("int4:g32")
    made = quantize(weights(), LayerStats(np.zeros(72, np.float32), 10), scheme, Options())
    plain = quantize(weights(), None, scheme, Options())
    np.testing.assert_array_equal(made.codes, plain.codes)
