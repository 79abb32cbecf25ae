"""Fake quantization: the engine's values bit for bit, and the gradients of the module docstring."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernels.test_linear import schemes
from tests.kernels.weights import magnitude, random_weight
from zeropoint.kernels import library, native
from zeropoint.reference import rounding
from zeropoint.reference.linear import linear as reference_linear
from zeropoint.reference.linear import quantize_activations
from zeropoint.training import engine_product
from zeropoint.training.fake_quantize import FakeQuantizer, round_scale
from zeropoint.values.scheme import Scheme, parse

needs_library = pytest.mark.skipif(not library.isa_levels(), reason="the native library is not built")


def inputs(rows: int, columns: int, seed: int, size: float = 1.0) -> np.ndarray:
    x = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) * np.float32(size)
    x[0, 0] *= 30  # an outlier
    return x


@needs_library
@given(
    scheme=schemes(),
    rows=st.integers(1, 6),
    features_out=st.integers(1, 40),
    features_in=st.integers(1, 200),
    size=st.sampled_from([1e-30, 1.0, 1.0, 1e30]),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
)
def test_a_layer_equals_the_engines_bits(
    scheme: Scheme, rows: int, features_out: int, features_in: int, size: float, seed: int, bias: bool
) -> None:
    weight = random_weight(scheme, (features_out, features_in), seed=seed)
    x = inputs(rows, features_in, seed, size)
    add = inputs(1, features_out, seed + 1, size)[0] if bias else None
    expected = native.linear(x, native.pack(weight), add)
    layer = FakeQuantizer(weight, exact=True)
    y = layer.linear(torch.from_numpy(x), None if add is None else torch.from_numpy(add))
    np.testing.assert_array_equal(y.detach().numpy(), expected)
    # the float products have the same values, up to the order of summation
    layer.exact = False
    near = layer.linear(torch.from_numpy(x)).detach().numpy()
    without = expected if add is None else native.linear(x, native.pack(weight))
    np.testing.assert_allclose(near, without, atol=1e-5 * magnitude(x, weight).max(), rtol=1e-4)


@needs_library
@pytest.mark.parametrize(
    "text", ["int4:g32:sym:nested:a16token", "int8:channel:a16token", "int4:g32:asym:a8g32"]
)
def test_long_rows_equal_the_engines_bits(text: str) -> None:
    weight = random_weight(text, (33, 2048), seed=3)
    x = inputs(20, 2048, 4)
    y = FakeQuantizer(weight, exact=True).linear(torch.from_numpy(x))
    np.testing.assert_array_equal(y.detach().numpy(), native.linear(x, native.pack(weight)))


def test_groups_that_do_not_nest_are_those_of_the_reference() -> None:
    weight = random_weight("int4:g24:asym:fp32:a8g32", (5, 100), seed=1)
    x = inputs(3, 100, 2)
    y = FakeQuantizer(weight, exact=True).linear(torch.from_numpy(x))
    np.testing.assert_array_equal(y.detach().numpy(), reference_linear(x, weight))


def test_fused_multiply_add_rounds_once() -> None:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(20_000).astype(np.float32) for _ in range(3))
    c[::2] = -(a * b)[::2] * np.float32(1 + 2.0**-23)  # cancellation
    c[1::4] *= np.float32(2.0**-24)  # near ties
    result = engine_product.fused_multiply_add(*map(torch.from_numpy, (a, b, c))).numpy()
    exact = a.astype(np.longdouble) * b + c  # 64 significant bits: exact or nearly so
    np.testing.assert_array_equal(result, exact.astype(np.float32))
    tie = [torch.tensor([value]) for value in (1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60)]
    assert engine_product.fused_multiply_add(*tie).item() == np.float32(1 + 2.0**-11 + 2.0**-23)


@pytest.mark.parametrize("text", ["int8:channel:a8token", "int8:channel:a16token", "int4:g32:a8g32"])
def test_inputs_are_quantized_as_in_the_reference(text: str) -> None:
    activation = parse(text).activation
    assert activation is not None
    x = inputs(7, 100, 5)
    x[1], x[2, 3], x[3] = 0, np.nan, 1e-38
    codes, scale = engine_product.quantize_input(torch.from_numpy(x), activation)
    expected_codes, expected_scale = quantize_activations(x, activation)
    np.testing.assert_array_equal(codes.numpy(), expected_codes)
    np.testing.assert_array_equal(scale.numpy(), expected_scale)


@given(scheme=schemes(), columns=st.integers(1, 100), seed=st.integers(0, 100), known=st.booleans())
def test_starts_from_exactly_the_quantized_weight(
    scheme: Scheme, columns: int, seed: int, known: bool
) -> None:
    weight = random_weight(scheme, (7, columns), seed=seed)
    floats = weight.dequantize() * np.float32(1.7) if known else None
    for trainable in ("full", "lora", "scales"):
        layer = FakeQuantizer(weight, floats, trainable=trainable)
        again = layer.tensor()
        np.testing.assert_array_equal(again.codes, weight.codes)
        np.testing.assert_array_equal(again.scale, weight.scale)
        if weight.zero_point is not None:
            np.testing.assert_array_equal(again.zero_point, weight.zero_point)
        np.testing.assert_array_equal(layer().detach().numpy(), weight.dequantize())
        ids = torch.tensor([[3, 0], [6, 3]])
        np.testing.assert_array_equal(layer.rows(ids).detach().numpy(), weight.dequantize()[ids.numpy()])


@pytest.mark.parametrize("text", ["int4:g8:asym:fp32", "int3:channel:sym:fp32", "int8:tensor:asym:fp32"])
def test_gradients_are_those_of_straight_through_rounding(text: str) -> None:
    """Against autograd on the formula, with the rounding taken out of the gradient."""
    scheme = parse(text)
    start = random_weight(scheme, (6, 20), seed=2)
    layer = FakeQuantizer(start)
    assert layer.weight is not None
    with torch.no_grad():  # some weights lie beyond the codes' range
        layer.weight += torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) * layer.weight.std()
    upstream = torch.randn(6, 20, generator=torch.Generator().manual_seed(1))
    (layer() * upstream).sum().backward()

    weight = layer.weight.detach().clone().requires_grad_()
    scale = layer.scale.detach().clone().requires_grad_()
    zero = torch.zeros_like(scale) if layer.zero_point is None else layer.zero_point.detach().clone()
    zero.requires_grad_()

    def columns_of(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(8, 1)[:, :20] if scheme.granularity == "group" else values

    ratio = weight / columns_of(scale)
    codes = ratio + (ratio.round() - ratio).detach() + columns_of(zero)
    values = (codes.clamp(scheme.qmin, scheme.qmax) - columns_of(zero)) * columns_of(scale)
    (values * upstream).sum().backward()
    inside = (codes >= scheme.qmin) & (codes <= scheme.qmax)
    assert 0 < int(inside.sum()) < inside.numel()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.scale.grad, scale.grad, rtol=1e-4, atol=1e-4)
    if layer.zero_point is not None:
        torch.testing.assert_close(layer.zero_point.grad, zero.grad, rtol=1e-4, atol=1e-4)


def test_low_rank_updates_are_absorbed_into_the_codes() -> None:
    start = random_weight("int4:g8:sym:nested", (8, 32), seed=4)
    layer = FakeQuantizer(start, trainable="lora", rank=2)
    assert layer.lora_a is not None
    assert layer.lora_b is not None
    with torch.no_grad():
        layer.lora_b += 2 * start.scale.max()
    layer().sum().backward()
    assert layer.weight is not None
    assert layer.weight.grad is None
    assert layer.lora_a.grad is not None
    made = layer.tensor()
    assert (made.codes != start.codes).any()
    np.testing.assert_array_equal(layer().detach().numpy(), made.dequantize())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_scales_round_as_in_the_reference(dtype: str) -> None:
    values = np.array([[0.0, 1e-45, -1e-39, 1e-7, 0.0123, -3.0, 60000.0]], np.float32)
    scheme = parse(f"int4:g8:sym:{dtype}")
    expected = rounding.round_scale(values, dtype)
    np.testing.assert_array_equal(round_scale(torch.from_numpy(values), scheme, None).numpy(), expected)


def test_two_level_scales_stay_multiples_of_their_base() -> None:
    start = random_weight("int4:g8:sym:nested", (16, 64), seed=5)
    layer = FakeQuantizer(start)
    with torch.no_grad():
        layer.scale *= torch.rand(layer.scale.shape, generator=torch.Generator().manual_seed(0)) * 3
    made = layer.tensor()
    assert layer.base is not None
    multiples = made.scale / layer.base.numpy()
    np.testing.assert_array_equal(multiples, np.rint(multiples))
    np.testing.assert_array_equal(made.scale, torch.from_numpy(made.scale).bfloat16().float().numpy())
    if library.isa_levels():
        native.pack(made)  # the engine takes them
