"""`draw` chooses tokens for many texts in one call, and they are the same as those of one `Sampler` per text."""

from __future__ import annotations

import numpy as np
import pytest

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.runtime.native.draw import draw, scores
from zeropoint.runtime.sampling import Sampler, Sampling

VOCABULARY = 300
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.8, top_p=0.95, seed=5),
    Sampling(temperature=1.3, top_k=20, min_p=0.01, seed=10**30),
    Sampling(temperature=1.0, repetition_penalty=1.3, presence_penalty=0.5, frequency_penalty=0.2, seed=1),
    Sampling(logit_bias={7: 100.0, 299: -100.0}, frequency_penalty=2.0),
]


def test_texts_get_the_tokens_of_their_own_samplers() -> None:
    random = np.random.default_rng(0)
    texts = [(sampling, Sampler(sampling, [1, 2]), Sampler(sampling, [1, 2])) for sampling in SAMPLINGS]
    for _ in range(30):
        order = random.permutation(len(texts))[: random.integers(1, len(texts) + 1)]
        logits = random.normal(0, 2, (len(order), VOCABULARY)).astype(np.float32)
        together = np.stack([texts[i][1].adjust(row) for i, row in zip(order, logits, strict=True)])
        found = draw(
            together,
            [texts[i][0] for i in order],
            [texts[i][1].count for i in order],
            [None] * len(order),
            threads=2,
        )
        for i, row, token in zip(order, logits, found, strict=True):
            texts[i][1].add(int(token))
            assert texts[i][2](row) == token


def test_a_mask_says_which_tokens_are_allowed() -> None:
    random = np.random.default_rng(1)
    logits = random.normal(0, 2, (50, 70)).astype(np.float32)
    allowed = random.random((50, 70)) < 0.2
    allowed[:, 69] = True
    padded = np.pad(allowed, ((0, 0), (0, 26)))
    masks = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    found = draw(logits, [Sampling(temperature=2.0)] * 50, list(range(50)), list(masks), threads=1)
    assert allowed[np.arange(50), found].all()
    greedy = draw(logits, [Sampling()] * 50, [0] * 50, list(masks), threads=1)
    np.testing.assert_array_equal(greedy, np.where(allowed, logits, -np.inf).argmax(1))


def test_what_no_token_can_be_chosen_from_is_an_error() -> None:
    logits = np.zeros((2, 40), np.float32)
    with pytest.raises(UsageError, match="allows no token"):
        draw(logits, [Sampling()] * 2, [0, 0], [None, np.zeros(2, np.int32)], threads=1)
    logits[1, 3] = np.nan
    with pytest.raises(ArtifactError, match="not finite"):
        draw(logits, [Sampling()] * 2, [0, 0], [None, None], threads=1)
    with pytest.raises(ArtifactError, match="not finite"):
        scores(logits, np.zeros(2, np.int32), 2, threads=1)


def test_scores_are_those_of_the_logits() -> None:
    found = scores(np.log(np.array([[0.25, 0.5, 0.25]], np.float32)), np.array([2], np.int32), 2, threads=1)
    np.testing.assert_allclose(found.scores, [np.log(0.25)], rtol=1e-6)
    assert found.top_ids.tolist() == [[1, 0]]
    np.testing.assert_allclose(found.top_scores, [[np.log(0.5), np.log(0.25)]], rtol=1e-6)
