"""GPTQ equals the paper's procedure, written down naively in float64: one column after the other, with the inverse
of the Hessian of the columns that are left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from zeropoint.algorithms import gptq, rtn
from zeropoint.errors import StatisticsError
from zeropoint.values.qtensor import QuantizedTensor, expand_groups
from zeropoint.values.scheme import Scheme, parse
from zeropoint.values.stats import LayerStats


def correlated(tokens: int = 400, columns: int = 200, *, seed: int = 0) -> np.ndarray:
    """Inputs `[tokens, in]` of which each channel goes with others, a few of them loud."""
    generator = np.random.default_rng(seed)
    mix = generator.standard_normal((columns, columns)) * generator.random((columns, 1)) ** 3
    inputs = generator.standard_normal((tokens, columns)) @ (mix + np.eye(columns))
    inputs[:, :: columns // 5] *= 12
    return inputs


def statistics(inputs: np.ndarray, other: np.ndarray | None = None) -> LayerStats:
    hessian = (inputs.T @ inputs).astype(np.float32)
    drift = None if other is None else ((other - inputs).T @ inputs).astype(np.float32)
    return LayerStats(hessian.diagonal().copy(), len(inputs), hessian, drift)


def naive(
    weight: np.ndarray, grid: QuantizedTensor, hessian: np.ndarray, order: np.ndarray, damping: float
) -> np.ndarray:
    """Optimal brain quantization in a fixed order (arXiv:2210.17323, equations 2 and 3)."""
    scheme, columns = grid.scheme, weight.shape[1]
    scale = np.broadcast_to(expand_groups(grid.scale, scheme, columns), weight.shape).astype(np.float64)
    zero = np.zeros(weight.shape)
    if grid.zero_point is not None:
        zero += expand_groups(grid.zero_point, scheme, columns)
    hessian = hessian.astype(np.float64) + damping * hessian.diagonal().mean(dtype=np.float64) * np.eye(
        columns
    )
    left = weight.astype(np.float64).copy()
    codes = np.empty(weight.shape, np.int8)
    remaining = list(order)
    while remaining:
        inverse = np.linalg.inv(hessian[np.ix_(remaining, remaining)])
        j = remaining[0]
        code = np.clip(np.rint(left[:, j] / scale[:, j]) + zero[:, j], scheme.qmin, scheme.qmax)
        error = left[:, j] - (code - zero[:, j]) * scale[:, j]
        left[:, remaining] -= np.outer(error / inverse[0, 0], inverse[0])
        codes[:, j] = code
        remaining = remaining[1:]
    return codes


def output_error(weight: np.ndarray, made: QuantizedTensor, inputs: np.ndarray) -> float:
    return float(np.linalg.norm(inputs @ (made.dequantize().astype(np.float64) - weight).T))


@pytest.mark.parametrize("order", [True, False])
@pytest.mark.parametrize(
    "text",
    ["int4:g32", "int4:g24:asym", "int3:g64", "int4:channel", "int8", "int4:g32:nested", "int5:g32:nested"],
)
def test_it_equals_the_naive_procedure(text: str, order: bool) -> None:
    scheme = parse(text)
    weight = np.random.default_rng(3).standard_normal((24, 200)).astype(np.float32)
    stats = statistics(correlated())
    assert stats.hessian is not None
    made = gptq.quantize(weight, stats, scheme, gptq.Options(order=order, sweeps=0))
    grid = rtn.quantize(weight, stats, scheme, rtn.Options())
    np.testing.assert_array_equal(made.scale, grid.scale)
    sequence = np.argsort(-stats.hessian.diagonal(), kind="stable") if order else np.arange(200)
    np.testing.assert_array_equal(made.codes, naive(weight, grid, stats.hessian, sequence, 0.01))


@pytest.mark.parametrize("text", ["int4:g32", "int4:g24:asym", "int4:g32:nested", "int3:channel"])
def test_a_sweep_gives_each_column_its_best_code(text: str) -> None:
    """Against trying every code of every weight in turn, in float64; the error falls with each sweep."""
    scheme, inputs = parse(text), correlated(columns=48)
    weight = np.random.default_rng(3).standard_normal((6, 48)).astype(np.float32)
    stats = statistics(inputs)
    assert stats.hessian is not None
    hessian = stats.hessian + 0.01 * stats.hessian.diagonal().mean() * np.eye(48, dtype=np.float32)
    start = gptq.quantize(weight, stats, scheme, gptq.Options(sweeps=0))
    codes = start.codes.copy()

    def cost(codes: np.ndarray) -> np.ndarray:
        values = QuantizedTensor(scheme, codes, start.scale, start.zero_point).dequantize()
        error = weight.astype(np.float64) - values
        return np.einsum("oi,ij,oj->o", error, hessian.astype(np.float64), error)

    least = [cost(codes)]
    for sweeps in (1, 2):
        for j in range(48):
            tried = []
            for code in range(scheme.qmin, scheme.qmax + 1):
                other = codes.copy()
                other[:, j] = code
                tried.append(cost(other))
            codes[:, j] = scheme.qmin + np.argmin(tried, axis=0)
        least.append(cost(codes))
        made = gptq.quantize(weight, stats, scheme, gptq.Options(sweeps=sweeps))
        np.testing.assert_array_equal(made.codes, codes)
    assert (np.diff(least, axis=0) <= 0).all()
    assert least[1].sum() < 0.99 * least[0].sum()


@pytest.mark.parametrize(("text", "ratio"), [("int4:g32", 0.8), ("int3:g32", 0.8), ("int8", 0.8)])
def test_it_gains(text: str, ratio: float) -> None:
    weight = np.random.default_rng(3).standard_normal((64, 200)).astype(np.float32)
    inputs = correlated()
    scheme, stats = parse(text), statistics(inputs)
    made = gptq.quantize(weight, stats, scheme, gptq.Options())
    plain = rtn.quantize(weight, stats, scheme, rtn.Options())
    assert output_error(weight, made, inputs) < ratio * output_error(weight, plain, inputs)


def test_propagation_aims_at_the_float_output() -> None:
    """With 8 bits next to nothing is rounded: the weights are those of least squares from the quantized inputs."""
    weight = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    exact = correlated(columns=64)
    inputs = exact + np.random.default_rng(5).standard_normal(exact.shape) + 0.3 * exact[:, ::-1]
    best = np.linalg.lstsq(inputs, exact @ weight.T, rcond=None)[0].T
    made = gptq.quantize(
        weight,
        statistics(inputs, exact),
        parse("int8:channel:fp32"),
        gptq.Options(damping=1e-9, propagate=1.0),
    )
    assert np.linalg.norm(made.dequantize() - best) < 0.2 * np.linalg.norm(weight - best)


def test_silent_channels_are_rounded_plainly() -> None:
    weight = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    inputs = correlated(columns=64)
    inputs[:, 10:20] = 0
    stats, scheme = statistics(inputs), parse("int4:g16")
    made, plain = (a.quantize(weight, stats, scheme, a.Options()) for a in (gptq, rtn))
    np.testing.assert_array_equal(made.codes[:, 10:20], plain.codes[:, 10:20])


@pytest.mark.parametrize(
    ("tokens", "less", "given", "used"),
    [
        (400, 0.0, 0.0, 0.0),  # a Hessian of full rank needs none
        (400, 0.0, 0.3, 0.3),
        (40, 0.0, 0.01, 0.01),  # rank 40 of 64: damping makes up for the rest
        (40, 0.0, 1.0, 1.0),
        (5, 0.05, 0.01, 0.1),  # smallest eigenvalue -0.05 of the diagonal's mean: ten times as much, once
        (5, 0.3, 0.01, 1.0),  # and twice
        (5, 0.0005, 0.0, 0.001),  # from 0 it goes on at 1e-6
    ],
)
def test_damping_is_what_the_naive_procedure_takes(
    tokens: int, less: float, given: float, used: float
) -> None:
    """`used`, or the first of `given`, 10 `given`, 100 `given` ... with which the Hessian can be factored."""
    weight = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    stats, scheme = statistics(correlated(tokens=tokens, columns=64)), parse("int4:g16")
    assert stats.hessian is not None
    mean = np.float32(stats.second_moment.mean())
    stats = replace(stats, hessian=stats.hessian - np.float32(less) * mean * np.eye(64, dtype=np.float32))
    assert stats.hessian is not None
    made = gptq.quantize(weight, stats, scheme, gptq.Options(damping=given, propagate=0))
    grid = rtn.quantize(weight, stats, scheme, rtn.Options())
    # relative to the mean of the diagonal that is given, of which `less` has been taken
    order = np.argsort(-stats.hessian.diagonal(), kind="stable")
    np.testing.assert_array_equal(made.codes, naive(weight, grid, stats.hessian, order, used))


def test_more_damping_corrects_less() -> None:
    """Each step trusts the calibration text less: its output error grows, and codes go back to the plain ones."""
    weight = np.random.default_rng(3).standard_normal((64, 200)).astype(np.float32)
    inputs, scheme = correlated(tokens=150), parse("int4:g32")
    stats = statistics(inputs)
    plain = rtn.quantize(weight, stats, scheme, rtn.Options())
    made = [gptq.quantize(weight, stats, scheme, gptq.Options(damping=d)) for d in (0.001, 0.01, 0.1, 1.0)]
    errors = [output_error(weight, each, inputs) for each in [*made, plain]]
    changed = [(each.codes != plain.codes).mean() for each in made]
    assert errors == sorted(errors)
    assert changed == sorted(changed, reverse=True)
    assert changed[0] > 1.2 * changed[-1]


@pytest.mark.parametrize("damping", [0.0, 0.01])
def test_dead_columns_neither_give_nor_take_errors(damping: float) -> None:
    """Their weights change no code of another column; undamped, they make the Hessian singular."""
    weight = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    other = weight.copy()
    other[:, 16:32] *= -3  # a group of its own
    inputs = correlated(columns=64)
    inputs[:, 16:32] = 0
    stats, scheme = statistics(inputs), parse("int4:g16")
    assert stats.hessian is not None
    options = gptq.Options(damping=damping)
    made, changed = (gptq.quantize(each, stats, scheme, options) for each in (weight, other))
    alive = np.r_[0:16, 32:64]
    np.testing.assert_array_equal(made.codes[:, alive], changed.codes[:, alive])
    grid = rtn.quantize(weight, stats, scheme, rtn.Options())
    np.testing.assert_array_equal(made.codes[:, 16:32], grid.codes[:, 16:32])
    order = np.argsort(-stats.hessian.diagonal(), kind="stable")
    np.testing.assert_array_equal(made.codes, naive(weight, grid, stats.hessian, order, damping or 1e-6))


@pytest.mark.parametrize(
    "stats",
    [
        None,
        LayerStats(np.ones(8, np.float32), 4),
        LayerStats(np.ones(8, np.float32), 4, np.zeros((8, 8), np.float32)),
        LayerStats(np.ones(8, np.float32), 4, np.full((8, 8), np.nan, np.float32)),
        LayerStats(
            np.ones(8, np.float32),
            4,
            np.eye(8, dtype=np.float32) - np.full((8, 8), 2, np.float32) + 2 * np.eye(8, dtype=np.float32),
        ),
    ],
)
def test_statistics_that_do_not_do(stats: LayerStats | None) -> None:
    with pytest.raises(StatisticsError):
        gptq.quantize(np.ones((4, 8), np.float32), stats, parse("int4:g8"), gptq.Options())


def test_schemes_without_groups() -> None:
    scheme = Scheme(4, "tensor", 0, False)
    weight = np.random.default_rng(3).standard_normal((16, 64)).astype(np.float32)
    made = gptq.quantize(weight, statistics(correlated(columns=64)), scheme, gptq.Options())
    assert made.scale.shape == (1, 1)
