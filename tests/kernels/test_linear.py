"""Every backend, on every instruction set level of this CPU, against the numpy reference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.weights import magnitude, random_weight
from zeropoint.errors import SchemeError, UnsupportedError
from zeropoint.kernels import backend, choose, library, native
from zeropoint.reference.linear import linear as reference_linear
from zeropoint.reference.linear import quantize_activations
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import Activation, Scheme, parse

LEVELS = library.isa_levels()
pytestmark = pytest.mark.skipif(not LEVELS, reason="the native library is not built")


@pytest.fixture(autouse=True)
def _restore_level() -> Iterator[None]:
    before = library.active_isa()
    yield
    library.select_isa(before)


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    bits = draw(st.sampled_from([2, 3, 4, 4, 4, 5, 5, 6, 8, 8, 8]))
    granularity = draw(st.sampled_from(["tensor", "channel", "group", "group"]))
    sizes = [8, 24, 32, 64, 128]
    group = draw(st.sampled_from(sizes)) if granularity == "group" else 0
    activation = None
    kind = draw(st.sampled_from(["none", "int8", "int8", "int16", "int16"]))
    if kind == "int8":
        fitting = [size for size in sizes if not group or size % group == 0 or group % size == 0]
        activation = Activation(8, draw(st.sampled_from([0, *fitting])))
    elif kind == "int16":
        activation = Activation(16)
    symmetric = draw(st.booleans())
    nests = granularity == "group" and symmetric and bits <= 5
    dtype = draw(st.sampled_from(["bf16", "fp32", *(["nested"] * 3 if nests else [])]))
    return Scheme(bits, granularity, group, symmetric, dtype, activation)  # type: ignore[arg-type]


def each_level(
    x: np.ndarray, weight: QuantizedTensor, bias: np.ndarray | None, threads: int
) -> Iterator[np.ndarray]:
    packed = native.pack(weight)
    for level in LEVELS:
        library.select_isa(level)
        yield native.linear(x, packed, bias, threads=threads)


@settings(max_examples=2 * settings().max_examples)
@given(
    scheme=schemes(),
    rows=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 16, 17, 32, 33, 64]),
    features_out=st.integers(1, 80),
    features_in=st.integers(1, 300),
    size=st.sampled_from([1e-30, 1.0, 1.0, 1e30]),
    seed=st.integers(0, 1000),
    bias=st.booleans(),
    threads=st.integers(1, 3),
)
def test_agrees_with_the_reference(
    scheme: Scheme,
    rows: int,
    features_out: int,
    features_in: int,
    size: float,
    seed: int,
    bias: bool,
    threads: int,
) -> None:
    weight = random_weight(scheme, (features_out, features_in), seed)
    rng = np.random.default_rng(seed)
    x = (size * rng.standard_normal((rows, features_in))).astype(np.float32)
    b = (size * rng.standard_normal(features_out)).astype(np.float32) if bias else None
    expected = reference_linear(x, weight, b)
    allowed = 1e-6 * (magnitude(x, weight) + size)
    results = list(each_level(x, weight, b, threads))
    for level, y in zip(LEVELS, results, strict=True):
        assert np.all(np.abs(y - expected) <= allowed), level
        if scheme.activation is not None:  # the integer levels round in the same places
            np.testing.assert_array_equal(y, results[0], err_msg=level)


@pytest.mark.parametrize(
    "text",
    ["int8:channel:a8g64", "int8:g32:asym:a8g32", "int4:g32:asym:a8g32", "int4:g128:a8token", "int8:a16token",
     "int8:asym:a16token", "int4:g32:nested:a16token", "int4:g32:nested:a8token", "int4:g64:a16token",
     "int5:g32:nested:a16token", "int5:g32:nested:a8token"],
)  # fmt: skip
@pytest.mark.parametrize("code", ["qmin", "qmax", "alternating"])
@pytest.mark.parametrize("rows", [1, 3, 8, 48])
@pytest.mark.parametrize("columns", [512, 2176])
def test_no_sum_saturates(text: str, code: str, rows: int, columns: int) -> None:
    """All codes and all activations at their bounds; but for sums of 16-bit codes, every float involved is exact."""
    scheme = parse(text)
    weight = random_weight(scheme, (32, columns), exact=True)
    codes = np.full(weight.shape, scheme.qmin if code == "qmin" else scheme.qmax, np.int8)
    if code == "alternating":
        codes[:, ::2] = scheme.qmin
    zero_point = None if scheme.symmetric else np.full_like(weight.zero_point, scheme.qmax)
    weight = QuantizedTensor(scheme, codes, extreme_scale(scheme, weight.scale), zero_point)
    most = scheme.activation.qmax if scheme.activation else 0
    for sign in (np.ones(columns), -np.ones(columns), np.where(np.arange(columns) % 2, 1, -1)):
        x = np.tile((most * sign).astype(np.float32), (rows, 1))
        expected = reference_linear(x, weight)
        results = list(each_level(x, weight, None, 2))
        for level, y in zip(LEVELS, results, strict=True):
            # Converting a sum 128 * high + low of 16-bit codes to float32 rounds the result, and in long rows `high`.
            rounding = 0 if most <= 127 else 1.2e-7 if columns == 512 else 1.8e-7
            np.testing.assert_allclose(y, expected, rtol=rounding)
            if scheme.activation is not None:
                np.testing.assert_array_equal(y, results[0], err_msg=level)


@pytest.mark.parametrize(
    "text",
    ["int8:a16token", "int8:asym:a16token", "int8:g1024:a16token", "int8:g1024:asym:a16token", "int5:g64:a16token",
     "int4:g32:nested:a16token", "int4:g600:asym:a16token", "int4:asym:a16token", "int4:g32:asym:a8g32"],
)  # fmt: skip
@pytest.mark.parametrize("columns", [520, 1096, 2300])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 6, 7, 100])
def test_long_rows(text: str, columns: int, rows: int) -> None:
    """Rows that are summed in several pieces, and row counts around those at which kernels change."""
    weight = random_weight(text, (40, columns))
    x = np.random.default_rng(rows).standard_normal((rows, columns)).astype(np.float32)
    expected = reference_linear(x, weight)
    allowed = 1e-6 * (magnitude(x, weight) + 1)
    results = list(each_level(x, weight, None, 2))
    for level, y in zip(LEVELS, results, strict=True):
        assert np.all(np.abs(y - expected) <= allowed), level
        np.testing.assert_array_equal(y, results[0], err_msg=level)


def extreme_scale(scheme: Scheme, scale: np.ndarray) -> np.ndarray:
    """0.5 everywhere; nested ones are multiples of 1/32, of the largest magnitude with both signs."""
    if scheme.scale_dtype != "nested":
        return np.full_like(scale, 0.5)
    signs = np.where(np.arange(scale.shape[1]) % 2, 1, -1)
    return np.broadcast_to(signs * scheme.max_multiple / 32, scale.shape).astype(np.float32)


@pytest.mark.parametrize("text", ["int4:g32:nested:a16token", "int5:g32:nested:a16token"])
def test_nested_scales_are_multiples_of_one_number(text: str) -> None:
    scheme = parse(text)
    weight = random_weight(scheme, (16, 256))
    for part in (1.37, 1 / (scheme.max_multiple + 1)):
        wrong = np.ones_like(weight.scale)
        wrong[3, 2] = part
        with pytest.raises(SchemeError, match="multiples"):
            native.pack(QuantizedTensor(scheme, weight.codes, wrong))


@pytest.mark.parametrize("rows", [1, 20])
def test_extreme_activations(rows: int) -> None:
    weight = random_weight("int8:channel:a8g32", (17, 128), exact=True)
    x = np.zeros((rows, 128), np.float32)
    x[:, :32] = 1e30
    x[:, 32:64] = 1e-42  # a denormal group counts as zero
    x[:, 64:96] = np.linspace(-1, 1, 32)
    expected = reference_linear(x, weight)
    for y in each_level(x, weight, None, 1):
        np.testing.assert_allclose(y, expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize(
    "text", ["int4:g32:asym:a8g32", "int4:g32:nested:a16token", "int5:g32:nested:a16token"]
)
def test_a_nan_or_infinity_spoils_its_own_token_only(text: str, bad: float, rows: int) -> None:
    weight = random_weight(text, (40, 96))
    x = np.random.default_rng(0).standard_normal((rows + 1, 96)).astype(np.float32)
    clean = native.linear(x, native.pack(weight))
    x[rows, 40] = bad
    for y in each_level(x, weight, None, 2):
        np.testing.assert_array_equal(y[:rows], clean[:rows])
        assert np.isnan(y[rows]).all()
    assert np.isnan(reference_linear(x, weight)[rows]).all()


def test_rounds_half_to_even() -> None:
    x = np.array([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, 0, 0]], np.float32)
    codes, scale = quantize_activations(x, Activation(8, 8))
    assert codes.tolist() == [[127, 0, 2, 2, 0, -2, 0, 0]]
    assert scale.tolist() == [[1.0]]
    wide, scale = quantize_activations(x * (16319 / 127), Activation(16))
    assert wide[0, 0] == 16319
    assert scale.tolist() == [[1.0]]
    weight = QuantizedTensor(parse("int8:tensor:a8g8"), np.eye(8, dtype=np.int8), np.ones((1, 1), np.float32))
    for y in each_level(x, weight, None, 1):
        np.testing.assert_array_equal(y, codes.astype(np.float32))


def test_result_is_independent_of_threads_and_of_other_rows() -> None:
    weight = random_weight("int4:g32:asym:a8g32", (200, 320))
    x = np.random.default_rng(1).standard_normal((70, 320)).astype(np.float32)
    packed = native.pack(weight)
    whole = native.linear(x, packed, threads=1)
    np.testing.assert_array_equal(native.linear(x, packed, threads=4), whole)
    alone = np.vstack([native.linear(row[None], packed, threads=2) for row in x])
    np.testing.assert_array_equal(alone, whole)


@pytest.mark.parametrize("text", ["int8:a16token", "int4:g32:nested:a16token", "int8:asym:a8token"])
@pytest.mark.parametrize("rows", [257, 262, 331, 1025])
def test_the_last_rows_of_many_are_like_any(text: str, rows: int) -> None:
    """Many rows are multiplied in passes; the last may hold so few that another kernel takes them."""
    packed = native.pack(random_weight(text, (40, 2048)))
    x = np.random.default_rng(4).standard_normal((rows, 2048)).astype(np.float32)
    tail = native.linear(x[-16:], packed, threads=1)
    for threads in (1, 2):
        np.testing.assert_array_equal(native.linear(x, packed, threads=threads)[-16:], tail)


def test_a_large_output_written_past_the_caches() -> None:
    """More than 4 MiB: AMX streams it; two passes over the rows as well."""
    weight = random_weight("int8:channel:a8g32", (2064, 64), exact=True)
    x = np.random.default_rng(3).integers(-127, 128, (520, 64)).astype(np.float32)
    expected = reference_linear(x, weight)
    for y in each_level(x, weight, None, 2):
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("name", ["native", "reference"])
@pytest.mark.parametrize("text", ["int8:channel:a8g64", "int4:g32:asym", "int3:tensor:asym", "int6:g24"])
def test_rows_are_the_dequantized_rows(name: str, text: str) -> None:
    weight = random_weight(text, (37, 100))
    module = backend(name)
    ids = np.array([0, 36, 5, 5])
    np.testing.assert_array_equal(module.rows(module.pack(weight), ids), weight.dequantize()[ids])
    with pytest.raises(SchemeError):
        module.rows(module.pack(weight), np.array([37]))


@pytest.mark.parametrize("name", ["native", "reference"])
def test_backends_write_to_out_and_to_addresses(name: str) -> None:
    module = backend(name)
    weight = random_weight("int8:channel:a8token", (20, 64))
    packed = module.pack(weight)
    x = np.random.default_rng(2).standard_normal((3, 64)).astype(np.float32)
    bias = np.arange(20, dtype=np.float32)
    out = np.full((3, 20), np.nan, np.float32)
    assert module.linear(x, packed, bias, out=out) is out
    again = np.empty_like(out)
    module.linear_ptr(x.ctypes.data, 3, packed, bias.ctypes.data, again.ctypes.data, 1)
    np.testing.assert_array_equal(again, out)
    with pytest.raises(SchemeError):
        module.linear(x, packed, out=np.empty((3, 21), np.float32))


def test_packed_memory_stays_near_the_artifacts() -> None:
    shape = (576, 1536)
    for text in ("int8:channel:a8g64", "int5:g32:a16token", "int4:g32:asym:a8g32"):
        scheme = parse(text)
        assert native.pack(random_weight(text, shape)).nbytes <= 1.03 * scheme.nbytes(shape)


def test_refusals_say_why() -> None:
    assert "nest" in (native.refusal(parse("int8:g24:a8g32"), (32, 96)) or "")
    assert "multiples of 8" in (native.refusal(parse("int4:g12"), (32, 96)) or "")
    assert "32 bits" in (native.refusal(parse("int8:a8token"), (32, 100_000)) or "")
    assert "float format" in (native.refusal(parse("bf16"), (32, 96)) or "")
    assert "not on cuda" in (native.refusal(parse("int8"), (32, 96), "cuda") or "")
    with pytest.raises(UnsupportedError, match="nest"):
        native.pack(random_weight("int8:g24:a8g32", (32, 96)))
    module, reasons = choose(parse("int8:g24:a8g32"), (32, 96))
    assert module is backend("reference")
    assert list(reasons) == ["native"]
    with pytest.raises(UnsupportedError, match="cuda"):
        choose(parse("int8"), (32, 96), "cuda")


def test_inputs_are_checked() -> None:
    packed = native.pack(random_weight("int8", (16, 32)))
    x = np.zeros((2, 32), np.float32)
    for wrong in (x[:, :16], x.astype(np.float64), np.zeros((2, 64), np.float32)[:, ::2]):
        with pytest.raises(SchemeError):
            native.linear(wrong, packed)
    with pytest.raises(SchemeError):
        native.linear(x, packed, np.zeros(17, np.float32))
    with pytest.raises(SchemeError, match="threads"):
        native.linear(x, packed, threads=1000)
    assert native.linear(x[:0], packed).shape == (0, 16)


@given(scheme=schemes(), rows=st.integers(1, 40), columns=st.integers(1, 200), seed=st.integers(0, 9))
def test_unpacking_gives_the_weight_that_was_packed(
    scheme: Scheme, rows: int, columns: int, seed: int
) -> None:
    weight = random_weight(scheme, (rows, columns), seed)
    for name in ("native", "reference"):
        module = backend(name)
        if module.refusal(scheme, (rows, columns)) is not None:
            continue
        found = module.unpack(module.pack(weight))
        assert found.scheme == scheme
        assert np.array_equal(found.codes, weight.codes)
        assert np.array_equal(found.scale, weight.scale)
        assert (found.zero_point is None) == (weight.zero_point is None)
        assert weight.zero_point is None or np.array_equal(found.zero_point, weight.zero_point)
