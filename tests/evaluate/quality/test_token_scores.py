from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.evaluate.quality.token_scores import measure_quality, score_window
from zeropoint.evaluate.quality.windows import Windows


def logits_of(*rows: list[float]) -> NDArray[np.float32]:
    return np.log(np.asarray(rows)).astype(np.float32)


def test_divergence_by_hand() -> None:
    reference = logits_of([0.5, 0.25, 0.25], [0.5, 0.25, 0.25])
    candidate = logits_of([0.25, 0.5, 0.25], [0.5, 0.25, 0.25])
    nll, scores = score_window(reference, {"c": candidate}, np.array([0]))
    # 0.5 ln 2 + 0.25 ln 0.5 = 0.25 ln 2
    assert scores["c"].kl[0] == pytest.approx(0.25 * np.log(2), rel=1e-6)
    assert nll[0] == pytest.approx(np.log(2), rel=1e-6)
    assert scores["c"].nll[0] == pytest.approx(np.log(4), rel=1e-6)
    assert not scores["c"].agrees[0]


def test_against_numpy_over_several_chunks() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(0, 5, (150, 33)).astype(np.float32)
    candidate = reference + rng.normal(0, 0.1, reference.shape).astype(np.float32)
    targets = rng.integers(0, 33, 149)
    nll, scores = score_window(reference, {"c": candidate}, targets)

    def softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
        e = np.exp(x.astype(np.float64))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(reference)[:-1], softmax(candidate)[:-1]
    np.testing.assert_allclose(scores["c"].kl, (p * np.log(p / q)).sum(1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(nll, -np.log(p[np.arange(149), targets]), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(scores["c"].agrees, p.argmax(1) == q.argmax(1))


def test_huge_offsets_and_masked_words_do_not_matter() -> None:
    reference = np.array([[1e4, 1e4 - 1, -np.inf], [0, 0, 0]], np.float32)
    candidate = np.array([[-1e4, -1e4 - 1, -np.inf], [0, 0, 0]], np.float32)
    _, scores = score_window(reference, {"c": candidate}, np.array([0]))
    assert scores["c"].kl[0] == pytest.approx(0, abs=1e-12)


class Fixed:
    """A source whose logits are a table over the token, times a sharpness, plus noise of its own."""

    def __init__(self, noise: float, vocabulary: int = 17) -> None:
        rng = np.random.default_rng(1)
        self.table = rng.normal(0, 2, (vocabulary, vocabulary)) + noise * np.random.default_rng(2).normal(
            0, 1, (vocabulary, vocabulary)
        )

    def logits(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.table[tokens % len(self.table)].astype(np.float32)


def windows(count: int = 12, context: int = 40) -> Windows:
    tokens = np.random.default_rng(3).integers(0, 17, (count, context))
    documents = np.repeat(np.arange(count)[:, None], context, 1)
    return Windows(tokens, documents)


def test_measure_quality_end_to_end() -> None:
    seen: list[float] = []
    run = measure_quality(
        Fixed(0),
        {"same": Fixed(0), "near": Fixed(0.1), "far": Fixed(1)},
        windows=windows(),
        progress=seen.append,
    )
    same, near, far = (run.candidates[n] for n in ("same", "near", "far"))
    assert same.kl_mean.value == 0
    assert same.top1_agreement.value == 1
    assert same.perplexity_ratio.value == pytest.approx(1)
    assert same.perplexity.value == pytest.approx(run.reference_perplexity.value)
    assert near.kl_mean.high < far.kl_mean.low
    assert near.kl_mean.low <= near.kl_mean.value <= near.kl_mean.high
    assert near.kl_mean.value <= near.kl_p99.value <= near.kl_max.value
    assert 0 < near.detectable_kl < near.kl_mean.value
    assert (run.scored_tokens, run.units, run.unit_kind) == (12 * 39, 12, "documents")
    assert seen[-1] == 1.0
    assert set(near.to_json()) >= {"perplexity", "kl_divergence", "top1_agreement", "kl_p99", "kl_max"}


def test_same_seed_same_intervals() -> None:
    first, second = (
        measure_quality(Fixed(0), {"c": Fixed(0.3)}, windows=windows(), seed=4) for _ in range(2)
    )
    assert first == second


def test_vocabularies_must_agree() -> None:
    with pytest.raises(UsageError, match="not the same model"):
        measure_quality(Fixed(0), {"other": Fixed(0, vocabulary=9)}, windows=windows())


def test_logits_that_are_not_numbers_are_named() -> None:
    broken = Fixed(0)
    broken.table[:] = np.nan
    with pytest.raises(ArtifactError, match="int4 gives logits that are not finite"):
        measure_quality(Fixed(0), {"int4": broken}, windows=windows())
