"""Grids fitted for ggml's nested formats: near what float scales give, weighted, and what GPTQ can round on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from zeropoint.algorithms import _gguf_grids as grids
from zeropoint.algorithms import rtn
from zeropoint.errors import SchemeError
from zeropoint.gguf.types import superblocks
from zeropoint.gguf.types.superblocks import FORMATS
from zeropoint.values.scheme import Scheme
from zeropoint.values.stats import LayerStats

KINDS = sorted(FORMATS)
Kind = GGMLQuantizationType


def sample(rows: int = 16, columns: int = 512, seed: int = 0) -> Any:
    """Groups of very different size and place."""
    rng = np.random.default_rng(seed)
    groups = rng.normal(size=(rows, columns // 16, 16)) * np.exp(rng.normal(size=(rows, columns // 16, 1)))
    return (0.02 * groups.reshape(rows, columns)).astype(np.float32)


def loud(columns: int, seed: int = 1) -> LayerStats:
    return LayerStats(np.exp(2 * np.random.default_rng(seed).normal(size=columns)).astype(np.float32), 100)


def error(weight: Any, found: Any, moments: Any = 1.0) -> float:
    return float((np.square(found.dequantize() - weight) * moments).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_nesting_costs_little_against_float_scales(kind: Kind) -> None:
    weight, form = sample(), FORMATS[kind]
    free = rtn.quantize(
        weight, None, Scheme(form.bits, "group", form.group, form.signed, "fp32"), rtn.Options()
    )
    assert error(weight, grids.fit(weight, None, kind)) < 1.1 * error(weight, free)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_fitted_is_what_ggml_reads(kind: Kind) -> None:
    found = grids.fit(sample(), loud(512), kind)
    np.testing.assert_array_equal(dequantize(superblocks.encode(found), kind), found.dequantize())


@pytest.mark.parametrize("kind", KINDS)
def test_errors_are_weighed_by_the_layers_input(kind: Kind) -> None:
    weight, stats = sample(), loud(512)
    plain, weighted = grids.fit(weight, None, kind), grids.fit(weight, stats, kind)
    assert error(weight, weighted, stats.second_moment) < error(weight, plain, stats.second_moment)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 1e-9])
def test_constant_blocks(kind: Kind, value: float) -> None:
    weight = np.full((2, 256), value, np.float32)
    found = grids.fit(weight, None, kind)
    assert (found.step() != 0).all()
    np.testing.assert_allclose(found.dequantize(), weight, atol=1e-6 + abs(value) / 100)


@pytest.mark.parametrize("kind", KINDS)
def test_other_codes_on_the_same_grid(kind: Kind) -> None:
    found = grids.fit(sample(), None, kind)
    centred, offset = grids.as_grid(found)
    again = grids.with_codes(found, centred.codes)
    np.testing.assert_array_equal(again.codes, found.codes)
    meant = centred.dequantize() + (0 if offset is None else offset)
    np.testing.assert_allclose(meant, found.dequantize(), rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(SchemeError, match="rows of 96 weights do not divide into blocks of 256"):
        grids.fit(np.ones((2, 96), np.float32), None, Kind.Q4_K)
    with pytest.raises(SchemeError, match="overflows FP16"):
        grids.fit(np.full((1, 256), 1e9, np.float32), None, Kind.Q4_1)


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q5_1])
def test_a_minimum_between_the_codes_is_found_again(kind: Kind) -> None:
    """Weights that lay on such a grid once: whole zero points miss it by up to half a step."""
    rng, form = np.random.default_rng(0), FORMATS[kind]
    codes = rng.integers(0, form.high + 1, (16, 16, 32))
    codes[..., 0], codes[..., 1] = 0, form.high
    step = rng.integers(1024, 2048, (16, 16, 1)) * 2.0**-17
    weight = (codes * step - step * (form.high / 2 + 0.5 * rng.random((16, 16, 1)))).reshape(16, 512)
    found = grids.fit(weight.astype(np.float32), None, kind)
    np.testing.assert_array_equal(found.codes.reshape(codes.shape), codes)
