"""Sampling at the ends of what floating point can say: the limit is taken, or one sentence says what is wrong."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.runtime.sampling import Sampler, Sampling, candidates, penalize

LARGEST = float(np.finfo(np.float32).max)
LOGITS = {
    "ordinary": np.random.default_rng(0).normal(0, 3, 3000).astype(np.float32),
    "close": np.float32(1) + np.arange(5, dtype=np.float32) * np.finfo(np.float32).eps,
    "masked": np.array([-np.inf, 1, -np.inf, 2, 1.5], np.float32),
    "all but one masked": np.array([-np.inf, -np.inf, -7, -np.inf], np.float32),
    "largest": np.array([-LARGEST, 0, LARGEST, 1], np.float32),
    "far below zero": np.array([-LARGEST, -LARGEST / 2, -LARGEST / 4], np.float32),
    "one token": np.array([5], np.float32),
}
EVERY = pytest.mark.parametrize("logits", LOGITS.values(), ids=LOGITS)


@EVERY
@pytest.mark.parametrize("temperature", [1e-30, 1e-38, 1e-44, 1e-50, 1e-300, 5e-324])
def test_a_tiny_temperature_is_greedy(temperature: float, logits: np.ndarray) -> None:
    for others in ({}, {"top_k": 2}, {"top_p": 0.9}, {"min_p": 0.1}, {"repetition_penalty": 1.1}):
        sampler = Sampler(Sampling(temperature=temperature, **others), seen=[0])  # type: ignore[arg-type]
        greedy = Sampler(Sampling(**{k: v for k, v in others.items() if k == "repetition_penalty"}), seen=[0])
        assert [sampler(logits) for _ in range(4)] == [greedy(logits) for _ in range(4)]


@pytest.mark.parametrize("temperature", [1e30, 1e38, 1e39, 1e300, 1.7e308, 10**300, Fraction(10**50)])
def test_a_huge_temperature_is_an_even_draw_among_what_is_not_masked(temperature: float) -> None:
    ids, probabilities = candidates(LOGITS["masked"], Sampling(temperature=temperature))
    drawn = dict(zip(ids.tolist(), probabilities.tolist(), strict=True))
    assert [drawn.get(token, 0) for token in range(5)] == pytest.approx([0, 1 / 3, 0, 1 / 3, 1 / 3])


@pytest.mark.parametrize("name", ["temperature", "top_p", "min_p", "repetition_penalty"])
@pytest.mark.parametrize(
    "value",
    ids=lambda value: f"{value!r:.8}",
    argvalues=[np.inf, -np.inf, np.nan, -1e-300, 10**400, -(10**400), "1", None, 1j, np.float32(np.inf)],
)
def test_what_is_no_finite_number_in_range_is_refused(name: str, value: Any) -> None:
    with pytest.raises(UsageError) as refusal:
        Sampling(**{name: value})
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    "options", [{"top_k": 1.5}, {"top_k": np.nan}, {"top_k": "5"}, {"seed": 0.5}, {"top_k": -(10**30)}]
)
def test_counts_are_whole_numbers(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Sampling(**options)


@EVERY
@pytest.mark.parametrize(
    "options",
    [
        {"top_p": 1e-300},
        {"top_p": 5e-324},
        {"min_p": 1.0},
        {"top_k": 1},
        {"min_p": 1 - 1e-9, "top_k": 10**30},
    ],
    ids=str,
)
def test_the_narrowest_choice_is_the_likeliest(options: dict[str, Any], logits: np.ndarray) -> None:
    sampler = Sampler(Sampling(temperature=0.7, **options))
    assert {sampler(logits) for _ in range(8)} == {int(logits.argmax())}


@EVERY
@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 10**30},
        {"top_p": 1 - 1e-16},
        {"min_p": 5e-324},
        {"min_p": 0, "top_p": 1, "top_k": 0},
        {"seed": 10**30},
        {"top_k": 2**63, "top_p": 1 - 1e-16, "min_p": 1e-300},
    ],
    ids=str,
)
def test_the_widest_choice_loses_nothing_and_draws_no_masked_token(
    options: dict[str, Any], logits: np.ndarray
) -> None:
    ids, probabilities = candidates(logits, Sampling(temperature=1.0, **options))
    found = np.zeros(len(logits))
    found[ids] = probabilities
    wanted = np.exp(logits.astype(np.float64) - logits.max())
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=1e-6)
    sampler = Sampler(Sampling(temperature=1.0, **options))
    assert all(np.isfinite(logits[sampler(logits)]) for _ in range(20))


@EVERY
@pytest.mark.parametrize("penalty", [5e-324, 1e-300, 1e-38, 1 - 1e-16, 1 + 1e-15, 1e38, 1e300, 1.7e308])
def test_a_penalty_of_any_size_gives_finite_logits(penalty: float, logits: np.ndarray) -> None:
    seen = set(range(len(logits)))
    before, after = logits.copy(), penalize(logits, seen, penalty)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(np.isfinite(after), np.isfinite(logits))
    np.testing.assert_array_equal(np.signbit(after), np.signbit(logits))
    for temperature in (0.0, 1.0, 1e-300):
        sampler = Sampler(Sampling(temperature=temperature, repetition_penalty=penalty), seen=sorted(seen))
        assert np.isfinite(logits[sampler(logits)])


def test_a_penalty_skips_tokens_outside_the_vocabulary() -> None:
    logits = np.array([1, 2, 3], np.float32)
    np.testing.assert_array_equal(penalize(logits, {-1, 3, 2**70, -(2**70)}, 2.0), logits)
    np.testing.assert_array_equal(penalize(logits, set(), 2.0), logits)


@pytest.mark.parametrize(
    "logits",
    [
        [np.nan, 1, 2],
        [1, 2, np.nan],
        [np.nan] * 3,
        [-np.nan, -np.inf, 5],
        [np.inf, 1, 2],
        [np.inf, -np.inf, np.nan],
        [-np.inf] * 3,
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"repetition_penalty": 1e300},
        {"temperature": 1e-300},
        {"temperature": 1e300},
        {"temperature": 1.0, "top_k": 1},
        {"temperature": 1.0, "top_p": 0.5, "min_p": 1.0},
    ],
    ids=str,
)
def test_logits_without_a_finite_largest_are_an_error(options: dict[str, Any], logits: list[float]) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        Sampler(Sampling(**options), seen=[0, 1, 2])(np.array(logits, np.float32))
