"""The reference arithmetic: errors of at most scale / 2, exact scales, named refusals."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.values.test_scheme import schemes
from zeropoint.errors import CheckpointError, SchemeError
from zeropoint.reference import rounding
from zeropoint.values.qtensor import expand_groups
from zeropoint.values.scheme import Scheme, parse

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=41)
WEIGHTS = SHAPES.flatmap(
    lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(-1e4, 1e4, width=32, allow_subnormal=True))
)

FORMATS = ["int8", "int8:channel:asym", "int8:tensor", "int4:g32", "int4:g32:asym", "int4:g7:asym:fp32", "int2:g8",
           "int3:tensor:asym", "int6:channel:fp16"]  # fmt: skip


def assert_within_half_a_step(weight: np.ndarray, scheme: Scheme) -> None:
    made = rounding.quantize_min_max(weight, scheme)
    steps = np.abs(expand_groups(made.scale, scheme, weight.shape[1])).astype(np.float64)
    error = np.abs(made.dequantize().astype(np.float64) - weight)
    # float32 arithmetic itself costs a few ulps of the weight
    assert (error <= steps * 0.5 * (1 + 1e-5) + np.abs(weight) * 3e-7).all()


@given(WEIGHTS, schemes())
def test_error_is_at_most_half_a_step(weight: np.ndarray, scheme: Scheme) -> None:
    assert_within_half_a_step(weight, scheme)


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((3, 40), np.float32),
        np.full((3, 40), 0.3, np.float32),
        np.full((3, 40), -7.25, np.float32),
        np.full((3, 40), 1e-41, np.float32),
        np.full((3, 40), 2.0**-126, np.float32),
        np.full((3, 40), 1e-5, np.float32),
        np.eye(40, dtype=np.float32)[:3] * 1000 + 1e-3,
        np.linspace(-1, 1, 123, dtype=np.float32).reshape(3, 41),
        np.vstack([np.zeros(40), np.ones(40), -np.ones(40)]).astype(np.float32),
    ],
    ids=[
        "zeros",
        "constant",
        "negative",
        "denormal",
        "smallest normal",
        "subnormal fp16 scale",
        "outliers",
        "ragged",
        "mixed rows",
    ],
)
def test_special_weights(text: str, weight: np.ndarray) -> None:
    scheme = parse(text)
    assert_within_half_a_step(weight, scheme)
    if not weight.any():
        assert not rounding.quantize_min_max(weight, scheme).dequantize().any()


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
@given(st.floats(1e-30, 6e4), st.booleans())
def test_scales_are_representable(dtype: str, value: float, up: bool) -> None:
    rounded = rounding.round_scale(np.array([[value, -value]]), dtype, up=up)
    assert (rounded == rounded.astype(rounding.STORAGE[dtype]).astype(np.float32)).all()
    assert (np.abs(rounded) > 0).all()
    assert (rounded[0, 0] > 0 > rounded[0, 1]).all()
    if up:
        assert (np.abs(rounded) >= value).all()


@pytest.mark.parametrize("text", ["int3:g32:nested", "int4:g32:nested", "int5:g32:nested"])
@given(st.lists(st.floats(1e-30, 6e4), min_size=1, max_size=20), st.booleans())
def test_nested_scales_widen_to_int8(text: str, values: list[float], up: bool) -> None:
    scheme = parse(text)
    most, scale = scheme.max_multiple, np.array([values])
    rounded = rounding.round_scale(scale, "nested", up=up, multiples=most)
    assert (rounded == rounded.astype(rounding.STORAGE["nested"]).astype(np.float32)).all()
    multiples = rounded / rounding.nested_base(scale, most)
    assert (multiples == np.clip(np.rint(multiples), 1, most)).all()
    assert max(-scheme.qmin, scheme.qmax) * most <= 127
    if up:
        assert (rounded >= scale * (1 - 1e-7)).all()


def test_rounding_is_half_to_even() -> None:
    weight = np.array([[0.5, 1.5, 2.5, -0.5, -1.5, 127]], np.float32)
    made = rounding.quantize(weight, parse("int8:channel:sym:fp32"), scale=np.ones((1, 1), np.float32))
    assert made.codes.tolist() == [[0, 2, 2, 0, -2, 127]]


def test_fp16_scale_overflow_is_refused_by_name() -> None:
    with pytest.raises(SchemeError, match=r"layer7.*fp16.*bf16"):
        rounding.quantize_min_max(np.full((1, 4), 1e8, np.float32), parse("int4:channel:fp16"), name="layer7")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_inf_are_refused_with_the_layers_name(bad: float) -> None:
    weight = np.zeros((3, 4), np.float32)
    weight[1, 2] = bad
    with pytest.raises(CheckpointError, match=r"model\.layers\.3.*\(1, 2\)"):
        rounding.quantize_min_max(weight, parse("int8"), name="model.layers.3.mlp.up_proj.weight")


def test_bfloat16_scales_match_the_library() -> None:
    values = np.array([[0.1, 0.2, 1 / 3]], np.float32)
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(rounding.round_scale(values, "bf16"), expected)
