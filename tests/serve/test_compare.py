"""The scores of an answer on real engines, beside other requests, equal those of one pass over the whole text."""

from __future__ import annotations

import asyncio
from itertools import chain
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.serve.drive import engine_of, run, submit
from tests.serve.small_model import VOCAB, small_decoder
from zeropoint.kernels.divergence import plain
from zeropoint.runtime.native.session import Session
from zeropoint.serve import compare
from zeropoint.serve.engine import Engine
from zeropoint.serve.request import Request
from zeropoint.values.arrays import Logits

PROMPT, ANSWER = np.split(np.random.default_rng(5).integers(0, 256, 190), [40])


def model_of(engine: Engine) -> Any:
    """Return the parts of a `zeropoint.serve.request.Model` that scoring uses."""
    return SimpleNamespace(submit=engine.submit, vocab_size=engine.vocab_size)


def logits_of(seed: int) -> Logits:
    """Return the logits that predict the answer's tokens, from one pass over the whole text."""
    text = [*PROMPT, *ANSWER[:-1]]
    return Session(small_decoder(seed), threads=1).feed_all(text)[len(PROMPT) - 1 :]


def test_scores_of_engines_equal_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "LOGITS_BYTES", 4 * VOCAB * 2 * 40)  # parts of 40 tokens, not of whole pages
    other = Request((1, 2, 3), max_new_tokens=150)

    async def score(*engines: Engine) -> list[compare.Part]:
        models = [model_of(engine) for engine in engines]
        return [part async for part in compare.score(models, PROMPT.tolist(), ANSWER.tolist())]

    with engine_of(small_decoder(0)) as first, engine_of(small_decoder(1)) as second:
        beside = submit(first, other)
        parts = asyncio.run(score(first, second))
        assert beside.wait().tokens == run(first, other)[0].tokens
    reference, candidate = logits_of(0), logits_of(1)
    truth = plain(reference, candidate, ANSWER)
    scores = [part.others[0] for part in parts]
    assert [len(part.tokens) for part in parts] == [40, 40, 40, 30]
    assert np.allclose([*chain.from_iterable(each.kl for each in scores)], truth.kl, atol=1e-6)
    assert np.allclose([*chain.from_iterable(each.nll for each in scores)], truth.nll, atol=1e-6)
    assert [*chain.from_iterable(each.agrees for each in scores)] == truth.agrees.tolist()
    best = [*chain.from_iterable(part.reference.choices for part in parts)]
    expected = np.where(truth.agrees, -1, reference.argmax(-1)).tolist()
    assert [-1 if choice is None else choice for choice in best] == expected
