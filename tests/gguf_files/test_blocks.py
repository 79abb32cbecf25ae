"""ggml's blocks hold our grids bit for bit, against the `gguf` package's reference of the format."""

from __future__ import annotations

import numpy as np
import pytest
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.gguf.types import blocks
from zeropoint.reference.rounding import quantize_min_max
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import parse


def weights(columns: int = 128, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=0.05, size=(24, columns)).astype(np.float32)


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        ("int8", "Q8_0"),
        ("int8:tensor", "Q8_0"),
        ("int8:g32:sym:fp16", "Q8_0"),
        ("int8:g64", "Q8_0"),
        ("int6:g32", "Q8_0"),
        ("int5:g32", "Q5_0"),
        ("int5:g32:asym", "Q8_0"),
        ("int4", "Q4_0"),
        ("int4:g96", "Q4_0"),
        ("int4:channel", "Q4_0"),
        ("int4:g64:asym", "Q5_0"),
        ("int2:g32", "Q4_0"),
    ],
)
def test_each_grid_has_its_type_and_is_exact(scheme: str, kind: str) -> None:
    weight = quantize_min_max(weights(), parse(scheme))
    assert blocks.choose(weight).name == kind
    assert_exact(weight)


def assert_exact(weight: QuantizedTensor) -> None:
    kind = blocks.choose(weight)
    raw = blocks.encode(weight, kind)
    np.testing.assert_array_equal(dequantize(raw, kind), weight.dequantize())
    np.testing.assert_array_equal(blocks.decode(raw, kind).dequantize(), weight.dequantize())


@given(
    bits=st.integers(2, 5),
    symmetric=st.booleans(),
    group=st.sampled_from([32, 64, 160]),
    columns=st.sampled_from([32, 96, 160]),
    dtype=st.sampled_from(["bf16", "fp16"]),
    seed=st.integers(0, 1 << 30),
)
def test_any_narrow_grid_is_exact(
    bits: int, symmetric: bool, group: int, columns: int, dtype: str, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    scheme = parse(f"int{bits}:g{group}:{'sym' if symmetric else 'asym'}:{dtype}")
    shape = scheme.scale_shape((3, columns))
    codes = rng.integers(scheme.qmin, scheme.qmax, (3, columns), np.int8, endpoint=True)
    scale = rng.integers(1, 255, shape).astype(np.float32) * np.float32(2.0**-14) * rng.choice([-1, 1], shape)
    zero = None if symmetric else rng.integers(scheme.qmin, scheme.qmax, shape, np.int8, endpoint=True)
    assert_exact(QuantizedTensor(scheme, codes, scale.astype(np.float32), zero))


def test_q4_1_where_every_minimum_is_an_fp16_number() -> None:
    weight = quantize_min_max(weights(), parse("int4:g32:asym"))
    coarse = QuantizedTensor(
        weight.scheme, weight.codes, np.full_like(weight.scale, 0.0078125), weight.zero_point
    )
    assert blocks.choose(coarse).name == "Q4_1"
    assert_exact(coarse)


@pytest.mark.parametrize(
    ("scheme", "columns", "why"),
    [
        ("int8", 80, "blocks of 32"),
        ("int4:g16", 128, "groups of 16"),
        ("int8:g32:asym", 128, "more than 8 bits"),
        ("int8:channel:sym:fp32", 128, "not FP16 numbers"),
    ],
)
def test_what_is_not_exact_is_refused(scheme: str, columns: int, why: str) -> None:
    with pytest.raises(SchemeError, match=why):
        blocks.choose(quantize_min_max(weights(columns), parse(scheme)))


def test_scales_beyond_fp16_are_refused() -> None:
    with pytest.raises(SchemeError, match="not FP16 numbers"):
        blocks.choose(quantize_min_max(weights() * 1e-6, parse("int8")))


def test_a_code_of_minus_128_is_decoded_with_a_zero_point() -> None:
    raw = np.zeros((1, 34), np.uint8)
    raw[0, :3] = [0, 0x3C, 0x80]  # scale 1.0, code -128
    weight = blocks.decode(raw, blocks.Kind.Q8_0)
    assert weight.dequantize()[0, 0] == -128
    assert not weight.scheme.symmetric


def test_minima_between_the_codes_are_not_decoded() -> None:
    raw = np.zeros((1, 20), np.uint8)
    raw[0, :4] = [0, 0x3C, 0x00, 0x38]  # scale 1.0, minimum 0.5
    with pytest.raises(SchemeError, match="1 of its 1 blocks"):
        blocks.decode(raw, blocks.Kind.Q4_1)
