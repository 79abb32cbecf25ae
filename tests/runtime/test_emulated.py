"""BF16 products computed in float32: the numbers that BF16 hardware gives, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from zeropoint.runtime import open_runner
from zeropoint.runtime.torch_engine import emulated


@pytest.fixture
def no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "_has_products", lambda: False)


@pytest.mark.parametrize("rows", [1, 15, 16, 33])
@pytest.mark.parametrize("shape", [(8, 5), (65, 127)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_products_are_float32_rounded_once(
    rows: int, shape: tuple[int, int], with_bias: bool, no_products: None
) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, shape[1]).bfloat16(), torch.randn(shape).bfloat16()
    bias = torch.randn(shape[0]).bfloat16() if with_bias else None
    exact = linear(x.double(), weight.double(), None if bias is None else bias.double())
    with emulated.fast_products():
        found = linear(x, weight, bias)
        named = linear(x, weight, bias=bias)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, named)
    if rows >= emulated.LEAST_ROWS:  # half a unit in the last place of BF16, and the order of summation
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-4).all()


def test_other_types_are_left_alone(no_products: None) -> None:
    x, weight = torch.randn(20, 8), torch.randn(3, 8)
    with emulated.fast_products():
        assert torch.equal(linear(x, weight), x @ weight.T)
        assert linear(x.double(), weight.double()).dtype == torch.float64


def test_nothing_changes_where_torch_has_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated, "_has_products", lambda: True)
    x, weight = torch.randn(20, 64).bfloat16(), torch.randn(32, 64).bfloat16()
    plain = linear(x, weight)
    with emulated.fast_products():
        assert torch.equal(linear(x, weight), plain)


def test_a_model_predicts_as_in_bfloat16(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = np.arange(40) % 90
    runner = open_runner(tiny_checkpoint("llama_tied"), threads=1, engine="universal", dtype="bfloat16")
    logits = {}
    for has_products in (True, False):
        monkeypatch.setattr(emulated, "_has_products", lambda has_products=has_products: has_products)
        logits[has_products] = runner.logits(tokens)
    np.testing.assert_allclose(logits[False], logits[True], atol=0.05)
