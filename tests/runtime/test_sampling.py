"""Sampling against naive numpy and transformers' own filters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.runtime.generation import generate
from zeropoint.runtime.sampling import Sampler, Sampling, candidates, penalize

LOGITS = np.random.default_rng(0).normal(0, 3, 5000).astype(np.float32)


def transformers_probabilities(logits: np.ndarray, sampling: Sampling, seen: list[int]) -> np.ndarray:
    filters = LogitsProcessorList()
    if sampling.repetition_penalty != 1:
        filters.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    filters.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        filters.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        filters.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        filters.append(MinPLogitsWarper(sampling.min_p))
    scores = filters(torch.tensor([seen or [0]]), torch.from_numpy(logits.astype(np.float64))[None])
    return scores[0].softmax(-1).numpy()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=50),
        Sampling(temperature=1.3, top_p=0.9),
        Sampling(temperature=4.0, top_p=0.99),  # a nucleus of thousands of tokens
        Sampling(temperature=0.8, min_p=0.05),
        Sampling(temperature=0.9, top_k=40, top_p=0.8, min_p=0.02, repetition_penalty=1.4),
    ],
    ids=str,
)
def test_probabilities_are_those_of_transformers(sampling: Sampling) -> None:
    seen = [3, 17, int(LOGITS.argmax()), 17] if sampling.repetition_penalty != 1 else []
    got = np.zeros(LOGITS.size)
    ids, probabilities = candidates(penalize(LOGITS, set(seen), sampling.repetition_penalty), sampling)
    got[ids] = probabilities
    np.testing.assert_allclose(got, transformers_probabilities(LOGITS, sampling, seen), atol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = Sampler(Sampling(temperature=1.0, seed=1))
    drawn = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4) / 20_000
    np.testing.assert_allclose(drawn, [0.5, 0.3, 0.15, 0.05], atol=0.012)


def test_a_seed_repeats_its_draws() -> None:
    draws = {}
    for seed in (1, 2):
        for run in range(2):
            sampler = Sampler(Sampling(temperature=1.0, seed=seed))
            draws[seed, run] = [sampler(LOGITS) for _ in range(20)]
    assert draws[1, 0] == draws[1, 1] != draws[2, 0] == draws[2, 1]


def test_greedy_with_a_penalty_avoids_what_was_seen() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert Sampler(Sampling())(logits) == 0
    assert Sampler(Sampling(repetition_penalty=1.2), seen=[0])(logits) == 1
    np.testing.assert_allclose(penalize(logits, {0, 2, 99}, 2.0), [1.0, 1.9, -2.0])
    assert logits[0] == 2.0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"seed": -1},
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**options)  # type: ignore[arg-type]


def test_generation_ends_at_a_stop_token_or_when_told() -> None:
    def step(fed: object) -> np.ndarray:
        return LOGITS

    best = int(LOGITS.argmax())
    assert generate(step, [1], max_new_tokens=4, sampling=Sampling()) == [best] * 4
    assert generate(step, [1], max_new_tokens=4, sampling=Sampling(), stop={best}) == [best]
    told = iter([False, True])
    found = generate(step, [1], max_new_tokens=4, sampling=Sampling(), on_token=lambda token: next(told))
    assert found == [best] * 2
    assert generate(step, [1], max_new_tokens=0, sampling=Sampling()) == []


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0, top_k=5)], ids=str)
def test_logits_that_are_not_finite_are_an_error(value: float, sampling: Sampling) -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        Sampler(sampling)(np.array([0.0, value, 1.0], np.float32))


def test_penalties_and_bias_change_logits_as_the_formulas_of_vllm() -> None:
    logits = np.array([2.0, 1.0, -1.0, 0.5, -np.inf], np.float32)
    options = Sampling(
        repetition_penalty=2.0,
        presence_penalty=0.25,
        frequency_penalty=0.5,
        logit_bias={3: 4.0, 4: 50.0, 99: 1.0},
    )
    sampler = Sampler(options, seen=[0])
    np.testing.assert_array_equal(sampler.adjust(logits), np.float32([1, 1, -1, 4.5, -np.inf]))
    for token in (3, 2, 3):
        sampler.add(token)
    # the token of the prompt gets no presence or frequency penalty
    expected = np.float32([1, 1, -2 - 0.75, 2.25 - 1.25, -np.inf])
    np.testing.assert_array_equal(sampler.adjust(logits), expected)
    assert logits[3] == 0.5
    assert Sampler(Sampling(), seen=[0]).adjust(logits) is logits


def test_a_bias_decides_greedy_decoding() -> None:
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    assert Sampler(Sampling(logit_bias={2: 100}))(logits) == 2
    alternating = Sampler(Sampling(presence_penalty=0.5))
    assert [alternating(logits) for _ in range(3)] == [0, 1, 0]


def test_a_logit_bias_is_kept_as_pairs() -> None:
    sampling = Sampling(logit_bias={5: 1, 2: -3.5})
    assert sampling.logit_bias == ((2, -3.5), (5, 1.0))
    assert hash(sampling) == hash(Sampling(logit_bias=[(5, 1.0), (2, -3.5)]))


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": float("nan")},
        {"frequency_penalty": float("inf")},
        {"presence_penalty": "1"},
        {"logit_bias": {1: float("inf")}},
        {"logit_bias": {"1": 1.0}},
        {"logit_bias": {1.5: 1.0}},
        {"logit_bias": {1: None}},
        {"logit_bias": 5},
        {"logit_bias": [1, 2]},
    ],
)
def test_penalties_and_biases_are_finite_numbers(options: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        Sampling(**options)  # type: ignore[arg-type]
