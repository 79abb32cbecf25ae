"""The kernels that choose codes against their plain computations: random weights, odd sizes, extremes, every level."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.errors import ZeropointError
from zeropoint.kernels import columns, grid, isa_levels, library
from zeropoint.values.qtensor import expand_groups
from zeropoint.values.scheme import Scheme, parse

SCHEMES = [
    "int4:g32",
    "int4:g32:nested",
    "int5:g32:nested",
    "int4:g24:asym",
    "int3:g7",
    "int8:channel",
    "int2:channel:asym",
    "int8:g500",
]
PARTS = np.array([1.06, 1.0, 0.9, 0.8, 0.7], np.float32)
FIELDS = ["low", "high", "scale", "zero"]

shapes = st.tuples(st.integers(1, 70), st.integers(1, 90))


@pytest.fixture(params=isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with library.level(request.param):
        yield request.param


def weights(shape: tuple[int, int], seed: int, size: float = 1.0) -> np.ndarray:
    return (size * np.random.default_rng(seed).standard_t(4, shape)).astype(np.float32)


def factor(count: int, seed: int) -> np.ndarray:
    """Upper triangular ratios of a Hessian's factor, as `gptq` gives them."""
    inputs = np.random.default_rng(seed).standard_normal((2 * count + 3, count))
    upper = np.linalg.cholesky(inputs.T @ inputs).T
    return (upper / upper.diagonal()[:, None]).astype(np.float32)


def left(weight: np.ndarray, scheme: Scheme, importance: np.ndarray, found: grid.Found) -> np.ndarray:
    """What is left of each group's error, relative to its size, on the grid found."""
    zero = None if scheme.symmetric else found.zero[None]
    scale = np.where(found.scale == 0, np.float32(1), found.scale)
    return grid.plain_errors(weight, scheme, importance, scale[None], zero)[0]


@given(
    shape=shapes,
    text=st.sampled_from(SCHEMES),
    seed=st.integers(0, 10**6),
    size=st.sampled_from([1e-6, 1.0, 1e6]),
    threads=st.integers(1, 3),
)
def test_the_search_is_as_good_as_the_plain_one(
    shape: tuple[int, int], text: str, seed: int, size: float, threads: int
) -> None:
    """Not always the same grid: float32 sums in another order may prefer another of two alike."""
    scheme, weight = parse(text), weights(shape, seed, size)
    importance = np.random.default_rng(seed).random(shape[1]).astype(np.float32) + np.float32(1e-3)
    found = grid.search(weight, scheme, importance, PARTS, threads=threads)
    plain = grid.plain_search(weight, scheme, importance, PARTS)
    np.testing.assert_array_equal(found.low, plain.low)
    np.testing.assert_array_equal(found.high, plain.high)
    mine, other = (left(weight, scheme, importance, grids) for grids in (found, plain))
    largest = (importance * np.square(weight, dtype=np.float64)).max(initial=0)
    np.testing.assert_allclose(mine, other, rtol=1e-3, atol=1e-6 * largest)
    if scheme.symmetric:
        assert not found.zero.any()


@given(shape=shapes, text=st.sampled_from(SCHEMES), seed=st.integers(0, 10**6), threads=st.integers(1, 3))
def test_errors_are_the_plain_ones(shape: tuple[int, int], text: str, seed: int, threads: int) -> None:
    rng, scheme, weight = np.random.default_rng(seed), parse(text), weights(shape, seed)
    grids = (3, *scheme.scale_shape(shape))
    scale = (rng.random(grids) + 0.01).astype(np.float32) * rng.choice([-1, 1], grids).astype(np.float32)
    zero = None if scheme.symmetric else rng.integers(scheme.qmin, scheme.qmax + 1, grids).astype(np.float32)
    importance = rng.random(shape[1]).astype(np.float32)
    found = grid.errors(weight, scheme, importance, scale, zero, threads=threads)
    plain = grid.plain_errors(weight, scheme, importance, scale, zero)
    np.testing.assert_allclose(found, plain, rtol=1e-4, atol=1e-5)


@given(shape=shapes, text=st.sampled_from(SCHEMES), seed=st.integers(0, 10**6), threads=st.integers(1, 3))
def test_each_column_becomes_the_nearest_level(
    shape: tuple[int, int], text: str, seed: int, threads: int
) -> None:
    """Given the kernel's own errors in the columns before it, in float64: one near tie changes all that follows."""
    rng, scheme, weight = np.random.default_rng(seed), parse(text), weights(shape, seed)
    scale = (0.3 * rng.random(scheme.scale_shape(shape)) + 0.05).astype(np.float32)
    zero = rng.integers(scheme.qmin, scheme.qmax + 1, scale.shape).astype(np.int8)
    zero_point = None if scheme.symmetric else zero
    ratio, order = factor(shape[1], seed), rng.permutation(shape[1])
    codes = columns.round_columns(weight, scheme, scale, zero_point, ratio, order, threads=threads)
    steps = np.broadcast_to(expand_groups(scale, scheme, shape[1]), shape).astype(np.float64)
    offset = np.broadcast_to(expand_groups(zero * (zero_point is not None), scheme, shape[1]), shape)
    error = weight - (codes - offset.astype(np.float64)) * steps
    upper = np.triu(ratio.astype(np.float64), 1)
    wanted = weight.astype(np.float64)[:, order] + error[:, order] @ upper.T
    exact = wanted / steps[:, order] + offset[:, order]
    nearest = np.clip(exact, scheme.qmin, scheme.qmax)
    assert (np.abs(codes[:, order] - nearest) <= 0.5 + 1e-4 * (1 + np.abs(exact))).all()


@given(shape=shapes, text=st.sampled_from(SCHEMES), seed=st.integers(0, 10**6), threads=st.integers(1, 3))
def test_a_sweep_changes_each_column_to_its_best_level(
    shape: tuple[int, int], text: str, seed: int, threads: int
) -> None:
    """Given the kernel's own codes in the columns before it and those it began with in the others, in float64."""
    rng, scheme, weight = np.random.default_rng(seed), parse(text), weights(shape, seed)
    scale = (0.3 * rng.random(scheme.scale_shape(shape)) + 0.05).astype(np.float32)
    zero_point = None if scheme.symmetric else rng.integers(-2, 2, scale.shape).astype(np.int8)
    start = rng.integers(scheme.qmin, scheme.qmax + 1, shape).astype(np.int8)
    upper = factor(shape[1], seed)
    hessian = upper.T @ upper
    codes = columns.descend(weight, scheme, scale, zero_point, hessian, start, 1, threads=threads)
    steps = np.broadcast_to(expand_groups(scale, scheme, shape[1]), shape).astype(np.float64)
    zero = 0 if zero_point is None else expand_groups(zero_point, scheme, shape[1]).astype(np.float64)
    begun, ended = (weight - (each - zero) * steps for each in (start, codes))
    exact = hessian.astype(np.float64)
    # Row j of the lower triangle meets errors that are final, its diagonal and the rest those of the beginning.
    pull = ended @ np.tril(exact, -1).T + begun @ np.triu(exact).T
    wanted = start + pull / (steps * exact.diagonal())
    nearest = np.clip(wanted, scheme.qmin, scheme.qmax)
    assert (np.abs(codes - nearest) <= 0.5 + 1e-4 * (1 + np.abs(wanted))).all()


@pytest.mark.parametrize("text", SCHEMES)
def test_it_descends_as_the_plain_computation_does(text: str) -> None:
    scheme, weight = parse(text), weights((70, 90), 1)
    scale = np.full(scheme.scale_shape(weight.shape), 0.3, np.float32)
    zero_point = None if scheme.symmetric else np.ones(scale.shape, np.int8)
    upper = factor(90, 1)
    start = np.zeros(weight.shape, np.int8)
    given_ = weight, scheme, scale, zero_point, upper.T @ upper, start, 2
    found = columns.descend(*given_)
    assert not start.any()
    assert np.mean(found == columns.plain_descend(*given_)) > 0.999
    np.testing.assert_array_equal(columns.descend(*given_[:-1], 0), start)


@pytest.mark.parametrize("text", SCHEMES)
def test_it_rounds_as_the_plain_computation_does(text: str) -> None:
    scheme, weight = parse(text), weights((70, 90), 1)
    scale = np.full(scheme.scale_shape(weight.shape), 0.3, np.float32)
    zero_point = None if scheme.symmetric else np.ones(scale.shape, np.int8)
    given_ = weight, scheme, scale, zero_point, factor(90, 1), np.random.default_rng(1).permutation(90)
    assert np.mean(columns.round_columns(*given_) == columns.plain(*given_)) > 0.999


@given(shape=shapes, text=st.sampled_from(SCHEMES), seed=st.integers(0, 10**6))
def test_every_level_and_number_of_threads_gives_the_same_bits(
    shape: tuple[int, int], text: str, seed: int
) -> None:
    scheme, weight, upper = parse(text), weights(shape, seed), factor(shape[1], seed)
    order, results = np.random.default_rng(seed).permutation(shape[1]), []
    for name in isa_levels():
        with library.level(name):
            for threads in (1, 2):
                grids = grid.search(weight, scheme, None, PARTS, threads=threads)
                scale = np.where(grids.scale == 0, np.float32(1), grids.scale)
                zero = None if scheme.symmetric else grids.zero
                error = grid.errors(
                    weight, scheme, None, scale[None], None if zero is None else zero[None], threads=threads
                )
                given_ = weight, scheme, scale, None if zero is None else zero.astype(np.int8)
                codes = columns.round_columns(*given_, upper, order, threads=threads)
                changed = columns.descend(*given_, upper.T @ upper, codes, 2, threads=threads)
                results.append((*grids, error, codes, changed))
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("text", ["int4:g32", "int4:g24:asym"])
@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 3e37])
def test_extremes(level: str, text: str, size: float) -> None:
    """Whatever the sums do, ranges are right and codes lie within their range."""
    scheme, weight = parse(text), np.sign(weights((17, 50), 3)) * np.float32(size)
    found = grid.search(weight, scheme, None, PARTS)
    np.testing.assert_array_equal(found.high, grid.plain_search(weight, scheme, None, PARTS).high)
    assert ((found.zero >= scheme.qmin) & (found.zero <= scheme.qmax)).all()
    scale = np.full_like(found.scale, 1e-30)
    zero_point = None if scheme.symmetric else found.zero.astype(np.int8)
    codes = columns.round_columns(weight, scheme, scale, zero_point, factor(50, 3), np.arange(50))
    changed = columns.descend(weight, scheme, scale, zero_point, np.eye(50, dtype=np.float32), codes, 2)
    for found_codes in (codes, changed):
        assert scheme.qmin <= found_codes.min()
        assert found_codes.max() <= scheme.qmax


def test_what_cannot_be_is_refused() -> None:
    scheme, weight = parse("int4:g32"), weights((4, 40), 4)
    scale = np.ones((4, 2), np.float32)
    with pytest.raises(ZeropointError, match="column 40 is not one of 40"):
        columns.round_columns(weight, scheme, scale, None, factor(40, 4), np.arange(40) + 1)
    with pytest.raises(ZeropointError, match="-1 sweeps"):
        columns.descend(weight, scheme, scale, None, np.eye(40, dtype=np.float32), weight.astype(np.int8), -1)
    with pytest.raises(ZeropointError, match="at least one fraction of the range"):
        grid.search(weight, scheme, None, PARTS[:0])
    with pytest.raises(ZeropointError, match="threads must be"):
        grid.search(weight, scheme, None, PARTS, threads=10_000)
