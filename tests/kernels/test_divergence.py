"""The kernel against the definition: random logits, extreme ones, odd sizes, every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.errors import ZeropointError
from zeropoint.kernels import active_isa, isa_levels, library
from zeropoint.kernels.divergence import divergence, plain


@pytest.fixture(scope="module", params=isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with library.level(request.param):
        yield request.param


def near(p: np.ndarray, q: np.ndarray, targets: np.ndarray, threads: int = 1) -> None:
    found, expected = divergence(p, q, targets, threads=threads), plain(p, q, targets)
    np.testing.assert_allclose(found.kl, expected.kl, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found.reference_nll, expected.reference_nll, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(found.nll, expected.nll, rtol=1e-6, atol=2e-6)
    assert (found.agrees == expected.agrees).all()


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 40),
    words=st.one_of(st.integers(1, 70), st.integers(500, 1100), st.just(3001)),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 100.0]),
    apart=st.sampled_from([0.0, 1e-4, 0.1, 3.0]),
    threads=st.integers(1, 3),
)
def test_it_is_the_definition_on_every_instruction_set(
    level: str, seed: int, rows: int, words: int, scale: float, apart: float, threads: int
) -> None:
    assert active_isa() == level
    rng = np.random.default_rng(seed)
    p = (scale * rng.normal(size=(rows, words)) + rng.normal() * 50).astype(np.float32)
    q = p + (apart * rng.normal(size=p.shape)).astype(np.float32)
    near(p, q, rng.integers(0, words, rows), threads)


def test_extremes(level: str) -> None:
    p = np.array([[3e38, -3e38, 0.0], [1e4, 1e4, -1e4], [0.0, 0.0, 0.0]], np.float32)
    q = np.array([[2.9e38, -3e38, 1.0], [1e4, 9e3, 1e4], [0.0, 0.0, 1.0]], np.float32)
    found = divergence(p[1:], q[1:], np.array([0, 2]), threads=1)
    expected = plain(p[1:], q[1:], np.array([0, 2]))
    np.testing.assert_allclose(found.kl, expected.kl, rtol=1e-5)
    assert found.agrees.tolist() == [True, False]
    assert np.isfinite(divergence(p, q, np.zeros(3, np.int64), threads=1).kl).all()


def test_a_small_divergence_of_many_words_is_kept() -> None:
    rng = np.random.default_rng(2)
    p = (3 * rng.normal(size=(64, 49_152))).astype(np.float32)
    q = p + (1e-3 * rng.normal(size=p.shape)).astype(np.float32)
    found, expected = (f(p, q, np.zeros(64, np.int64)) for f in (divergence, plain))
    assert 1e-7 < expected.kl.mean() < 1e-5
    assert abs(found.kl.mean() - expected.kl.mean()) < 2e-7


def test_masked_words() -> None:
    p = np.array([[0.0, 1.0, -np.inf]], np.float32)
    q = np.array([[1.0, 1.0, 5.0]], np.float32)
    near(p, q, np.array([0]))
    assert divergence(q, p, np.array([0])).kl == [np.inf]
    assert divergence(p, p, np.array([1])).kl == [0.0]


def test_a_word_that_is_none_is_refused() -> None:
    logits = np.zeros((1, 4), np.float32)
    with pytest.raises(ZeropointError, match="token 4 is not one of 4"):
        divergence(logits, logits, np.array([4]))
