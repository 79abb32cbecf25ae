"""Scores of an answer by other models: equal to a direct computation, in bounded memory, over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import client_of, wait_until
from tests.serve.page.scoring import ScoringModel, expected, make_models
from zeropoint.errors import UsageError
from zeropoint.evaluate import statistics
from zeropoint.serve import compare
from zeropoint.serve.compare import Part, score

#: Token ids of the prompt "<|im_start|>Hi".
PROMPT = [258, 72, 105]
#: Token ids of the answer to score: 150 random bytes, more than one part of `compare.MOST_ROWS`.
ANSWER = np.random.default_rng(3).integers(0, 256, 150).tolist()


async def all_parts(models: Sequence[ScoringModel], answer: Sequence[int]) -> list[Part]:
    return [part async for part in score(models, PROMPT, answer)]


def joined(lists: Iterable[list[Any]]) -> list[Any]:
    return list(itertools.chain.from_iterable(lists))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 150])
def test_scores_equal_a_direct_computation(models: list[ScoringModel], length: int) -> None:
    answer = ANSWER[:length]
    parts = asyncio.run(all_parts(models, answer))
    assert [token for part in parts for token in part.tokens] == answer
    for index, truth in enumerate(expected(models, PROMPT, answer)):
        scores = [part.others[index] for part in parts]
        assert np.allclose(joined(each.kl for each in scores), truth.kl, atol=1e-6)
        assert np.allclose(joined(each.nll for each in scores), truth.nll, atol=1e-5)
        assert joined(each.agrees for each in scores) == truth.agrees.tolist()
        own = joined(part.reference.nll for part in parts)
        assert np.allclose(own, truth.reference_nll, atol=1e-5)


def test_choices_are_the_most_likely_tokens_where_models_differ(models: list[ScoringModel]) -> None:
    (part,) = asyncio.run(all_parts(models, ANSWER[:40]))
    best = [model.logits([*PROMPT, *ANSWER[:39]])[-40:].argmax(-1) for model in models]
    for row in range(40):
        for scores, choices in zip(part.others, best[1:], strict=True):
            differs = bool(choices[row] != best[0][row])
            assert scores.choices[row] == (int(choices[row]) if differs else None)
        shown = any(scores.choices[row] is not None for scores in part.others)
        assert part.reference.choices[row] == (int(best[0][row]) if shown else None)
    assert any(choice is not None for choice in part.reference.choices)


def test_memory_is_bounded(models: list[ScoringModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "LOGITS_BYTES", 4 * 260 * 3 * 5 + 1)
    parts = asyncio.run(all_parts(models, ANSWER[:12]))
    assert [model.most_rows for model in models] == [5, 5, 5]
    assert [len(part.tokens) for part in parts] == [5, 5, 2]


def test_models_with_other_tokens_are_refused(models: list[ScoringModel]) -> None:
    models[2].vocab_size = 300
    with pytest.raises(UsageError, match="fp16 and int4 have different tokens"):
        compare.check_models(models, "text")


def test_leaving_cancels_the_requests(fake_folder: Path) -> None:
    models = make_models(fake_folder, 2, holds=True)

    async def leave() -> None:
        task = asyncio.ensure_future(all_parts(models, ANSWER[:3]))
        while not all(model.requests for model in models):
            await asyncio.sleep(0.001)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(leave())
    wait_until(lambda: all(model.cancelled == 1 for model in models))


def test_texts_of_tokens(models: list[ScoringModel]) -> None:
    tokenizer = models[0].tokenizer
    tokens = tokenizer.encode("aß日")
    assert compare.token_texts(tokenizer, tokens) == ["a", "", "ß", "", "", "日"]
    assert compare.token_texts(tokenizer, tokens[:2])[-1] == "\ufffd"
    assert compare.text_after(tokenizer, tokens[0], tokens[0]) == "a"


# -- over HTTP --------------------------------------------------------------------------------------


def lines(client: TestClient, **body: Any) -> list[dict[str, Any]]:
    request = {"models": ["fp16", "int8", "int4"], "prompt_tokens": PROMPT, "answer_tokens": ANSWER, **body}
    response = client.post("/compare/score", json=request)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def test_http_scores(models: list[ScoringModel]) -> None:
    with client_of(*models) as client:
        parts = lines(client)
    for index, truth in enumerate(expected(models, PROMPT, ANSWER)):
        assert np.allclose(joined(part["others"][index]["kl"] for part in parts), truth.kl, atol=1e-6)
        choices = joined(part["others"][index]["choices"] for part in parts)
        assert [choice is None for choice in choices] == truth.agrees.tolist()
    assert joined(part["ids"] for part in parts) == ANSWER
    assert "".join(joined(part["texts"] for part in parts)) == models[0].tokenizer.decode(ANSWER)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"models": ["fp16"]}, 400, "at least 2"),
        ({"models": ["fp16"] * 5}, 400, "at most 4"),
        ({"models": ["fp16", "none"]}, 404, "does not exist"),
        ({"models": "fp16"}, 400, "a list"),
        ({"answer_tokens": []}, 400, "not empty"),
        ({"answer_tokens": [260]}, 400, "end at 259"),
        ({"prompt_tokens": [-1]}, 400, "at least 0"),
        ({"answer_tokens": [1] * 9000}, 400, "At most 8192"),
        ({"prompt_tokens": [1] * 4000}, 400, "longer than 4096"),
    ],
)
def test_bad_requests(models: list[ScoringModel], change: dict[str, Any], status: int, words: str) -> None:
    request = {"models": ["fp16", "int8"], "prompt_tokens": PROMPT, "answer_tokens": ANSWER, **change}
    with client_of(*models) as client:
        response = client.post("/compare/score", json=request)
    assert (response.status_code, words in response.json()["error"]["message"]) == (status, True), (
        response.text
    )


def test_a_failing_engine_ends_the_lines_with_an_error(models: list[ScoringModel]) -> None:
    models[1].fails_after = 0
    with client_of(*models) as client:
        (line,) = lines(client)
    assert line["error"]["status"] == 500
    assert "secret" not in json.dumps(line)
    models[1].fails_after, models[1].busy = None, True
    with client_of(*models) as client:
        (line,) = lines(client)
    assert line["error"]["status"] == 429


def test_summary_equals_the_statistics_of_reports(models: list[ScoringModel]) -> None:
    draws = np.random.default_rng(1)
    kl = [draws.exponential(0.01, 40).tolist() for _ in range(9)]
    agrees = [(draws.random(40) > 0.1).tolist() for _ in kl]
    scores = [{"kl": one, "agrees": other} for one, other in zip(kl, agrees, strict=True)]
    with client_of(*models) as client:
        found = client.post("/compare/summary", json={"scores": {"int8": scores}}).json()["models"]["int8"]
    resampled = statistics.resampler(np.repeat(np.arange(9), 40))
    truth = statistics.estimate_mean(np.concatenate(kl), resampled)
    assert (found["kl"]["value"], found["kl"]["low"], found["kl"]["high"]) == (
        truth.value,
        truth.low,
        truth.high,
    )
    assert found["flips"]["value"] == pytest.approx(1 - np.mean(agrees))
    assert found["flips"]["low"] < found["flips"]["value"] < found["flips"]["high"]
    assert found["tokens"] == 360


def test_differences_are_paired(models: list[ScoringModel]) -> None:
    """The same noise on both models cancels; differences are second minus first."""
    draws = np.random.default_rng(2)
    noise = [draws.exponential(1.0, 50) for _ in range(10)]
    extra = [0.01 + draws.random(50) * 0.01 for _ in noise]
    scores = {
        "int8": [{"kl": each.tolist(), "agrees": [True] * 50} for each in noise],
        "int4": [
            {"kl": (each + more).tolist(), "agrees": [True] * 50}
            for each, more in zip(noise, extra, strict=True)
        ],
    }
    with client_of(*models) as client:
        (found,) = client.post("/compare/summary", json={"scores": scores}).json()["differences"]
    assert found["models"] == ["int8", "int4"]
    assert found["kl"]["value"] == pytest.approx(np.mean(extra))
    assert 0.014 < found["kl"]["low"] < found["kl"]["value"] < found["kl"]["high"] < 0.016
    assert found["flips"] == {"value": 0, "low": 0, "high": 0}


@pytest.mark.parametrize(
    ("scores", "low"), [([0.1, 0.2], None), ([0.0] * 20, 0.0), ([0.0] * 19 + [1.0], None)]
)
def test_summary_of_few_tokens(models: list[ScoringModel], scores: list[float], low: float | None) -> None:
    body = {"scores": {"int8": [{"kl": scores, "agrees": [True] * len(scores)}]}}
    with client_of(*models) as client:
        found = client.post("/compare/summary", json=body).json()["models"]["int8"]
    assert found["kl"]["low"] == low
    assert found["flips"]["value"] == 0


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([], "at least 1"),
        ([{"kl": [0.1], "agrees": [True, False]}], "Each token"),
        ([{"kl": [-1.0], "agrees": [True]}], "at least 0"),
        ([{"kl": [0.0] * 50_001, "agrees": [True] * 50_001}], "at most 50000"),
    ],
)
def test_bad_summaries(models: list[ScoringModel], scores: Any, words: str) -> None:
    with client_of(*models) as client:
        response = client.post("/compare/summary", json={"scores": {"int8": scores}})
    assert (response.status_code, words in response.json()["error"]["message"]) == (400, True), response.text
