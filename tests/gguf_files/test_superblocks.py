"""K-quants and blocks with a minimum hold what they mean, against the `gguf` package's reference of the format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.errors import SchemeError
from zeropoint.gguf.types import superblocks
from zeropoint.gguf.types.superblocks import FORMATS, SuperTensor

KINDS = sorted(FORMATS)


def random_tensor(kind: GGMLQuantizationType, rows: int, blocks: int, seed: int) -> SuperTensor:
    """Any bits that the type can hold, its extremes included."""
    rng, form = np.random.default_rng(seed), FORMATS[kind]

    def halves() -> Any:
        return rng.normal(scale=0.01, size=(rows, blocks)).astype(np.float16).astype(np.float32)

    def multiples(least: int) -> Any:
        return rng.integers(least, form.most, (rows, blocks * form.groups), np.int16, endpoint=True)

    codes = rng.integers(form.low, form.high, (rows, blocks * form.block), np.int8, endpoint=True)
    if form.groups == 1:
        ones = np.ones((rows, blocks), np.int16)
        return SuperTensor(kind, codes, halves(), ones, halves(), ones)
    if form.signed:
        return SuperTensor(kind, codes, halves(), multiples(-form.most - 1))
    return SuperTensor(kind, codes, halves(), multiples(0), halves(), multiples(0))


@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(1, 3),
    blocks=st.integers(1, 3),
    seed=st.integers(0, 1 << 30),
)
def test_what_is_encoded_is_what_ggml_reads(
    kind: GGMLQuantizationType, rows: int, blocks: int, seed: int
) -> None:
    weight = random_tensor(kind, rows, blocks, seed)
    raw = superblocks.encode(weight)
    assert raw.shape == (rows, blocks * GGML_QUANT_SIZES[kind][1])
    np.testing.assert_array_equal(dequantize(raw, kind), weight.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_taken_with_all_that_belongs_to_them(kind: GGMLQuantizationType) -> None:
    weight, order = random_tensor(kind, 5, 2, seed=3), np.array([4, 0, 2])
    np.testing.assert_array_equal(weight.take(order).dequantize(), weight.dequantize()[order])
    np.testing.assert_array_equal(weight.rows(3, 9).dequantize(), weight.dequantize()[3:])


def test_what_a_type_cannot_hold_is_refused() -> None:
    weight = random_tensor(GGMLQuantizationType.Q4_K, 2, 1, seed=0)
    with pytest.raises(SchemeError, match=r"outside \[0, 15\] of Q4_K"):
        SuperTensor(
            weight.kind, weight.codes + np.int8(3), weight.d, weight.scales, weight.dmin, weight.minima
        )
    with pytest.raises(SchemeError, match="needs a minimum"):
        SuperTensor(weight.kind, weight.codes, weight.d, weight.scales)
    with pytest.raises(SchemeError, match="blocks of 256"):
        SuperTensor(weight.kind, weight.codes[:, :96], weight.d, weight.scales, weight.dmin, weight.minima)
    with pytest.raises(SchemeError, match="needs `d` of shape"):
        SuperTensor(weight.kind, weight.codes, weight.d[:1], weight.scales, weight.dmin, weight.minima)
