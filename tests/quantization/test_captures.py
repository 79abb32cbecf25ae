"""Sums over calibration tokens follow their definitions; bfloat16 is used where it is measured to be faster."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from zeropoint.quantization import captures, product_precision
from zeropoint.quantization.captures import Sums


@pytest.mark.parametrize("width", [7, 128, 300, 576])
@pytest.mark.parametrize("reduced", [False, True])
def test_a_hessian_is_summed_in_strips(width: int, reduced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captures, "reduced_products_pay", lambda: reduced)  # bfloat16 products: one strip
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, 20, width, generator=generator) for _ in range(3)]
    sums = Sums({"hessian"})
    for batch in batches:
        sums.add(batch)
    stats = sums.stats()
    assert stats is not None
    assert stats.hessian is not None
    x = torch.cat(batches).reshape(-1, width).double()
    np.testing.assert_allclose(stats.hessian, (x.T @ x).numpy(), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(stats.second_moment, stats.hessian.diagonal())
    assert stats.count == 120


def test_the_drift_is_summed_against_the_float_model() -> None:
    x, y = torch.randn(2, 2, 8, 5, generator=torch.Generator().manual_seed(0))
    sums = Sums({"hessian", "drift"})
    for batch, exact in zip(x, y, strict=True):
        sums.add(batch, exact)
    stats = sums.stats()
    assert stats is not None
    assert stats.drift is not None
    flat, float_model = x.reshape(-1, 5), y.reshape(-1, 5)
    np.testing.assert_allclose(stats.drift, ((float_model - flat).T @ flat).numpy(), rtol=1e-4, atol=1e-5)


def test_no_token_gives_no_statistics() -> None:
    assert Sums({"hessian", "drift"}).stats() is None


@pytest.mark.parametrize(
    ("flags", "seconds", "pays"),
    [
        ({}, 0.1, False),  # no bfloat16 instructions: not timed
        ({"avx512_bf16": True}, 0.1, True),
        ({"avx512_bf16": True}, 0.9, False),  # instructions that are hardly faster
        ({"amx_bf16": True}, 2.0, False),
    ],
)
def test_bfloat16_is_used_where_it_is_measured_to_be_faster(
    flags: dict[str, bool], seconds: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: flags)
    timed: list[object] = []

    def time_of(run: object) -> float:
        """Return the time of a product; every second call times the one in bfloat16."""
        timed.append(run)
        return 1.0 if len(timed) % 2 else seconds

    monkeypatch.setattr(product_precision, "_seconds", time_of)
    for measure in (product_precision.bfloat16_layers_pay, product_precision.reduced_products_pay):
        assert measure.__wrapped__() is pays
    assert bool(timed) == bool(flags)
