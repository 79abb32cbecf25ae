"""C++ and numpy choose the same tokens at every instruction set level, with any threads and any other rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from zeropoint.errors import SchemeError, ZeropointError
from zeropoint.kernels import library
from zeropoint.kernels.sampling import MOST_UNITS, Draw, choose, exponential, plain, random_bits, score, weigh
from zeropoint.values.arrays import Int32s, Logits

GREEDY = Draw(0.0, 0, 1.0, 0.0, 0, 0)


@pytest.fixture(params=library.isa_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    with library.level(request.param):
        yield request.param


def random_row(random: np.random.Generator, vocab: int) -> Logits:
    row = random.normal(0, random.uniform(0.01, 8), vocab).astype(np.float32)
    kind = random.integers(5)
    if kind == 0:
        row = np.rint(row)  # many ties
    elif kind == 1:
        row[random.random(vocab) < random.choice([0.1, 0.95])] = -np.inf
    elif kind == 2 and random.random() < 0.3:
        row[random.integers(vocab)] = random.choice([np.nan, np.inf])
    return row


def random_draw(random: np.random.Generator, vocab: int) -> Draw:
    mask = None
    if random.random() < 0.3:
        mask = random.integers(-(2**31), 2**31, -(-vocab // 32)).astype(np.int32)
        mask[random.random(len(mask)) < 0.5] = 0
    return Draw(
        temperature=float(random.choice([0.0, 0.3, 0.8, 1.0, 5.0, 1.2e-38, 3e38])),
        top_k=int(random.choice([0, 0, 1, 3, 40, max(1, vocab - 2), 2**62])),
        top_p=float(random.choice([1.0, 1.0, 0.95, 0.5, 0.01, 1 - 1e-16, 1e-300])),
        min_p=float(random.choice([0.0, 0.0, 0.05, 1e-4, 1.0, 5e-324])),
        seed=int(random.integers(0, 2**64, dtype=np.uint64)),
        number=int(random.integers(1000)),
        mask=mask,
    )


@pytest.mark.parametrize("vocab", [1, 5, 16, 33, 511, 513, 3000])
def test_native_tokens_are_those_of_numpy(vocab: int, level: str) -> None:
    random = np.random.default_rng(vocab)
    logits = np.stack([random_row(random, vocab) for _ in range(40)])
    draws = [random_draw(random, vocab) for _ in range(40)]
    expected = [plain(row, draw) for row, draw in zip(logits, draws, strict=True)]
    for threads in (1, 3):
        assert choose(logits, draws, threads=threads).tolist() == expected
    assert [int(choose(logits[i : i + 1], draws[i : i + 1])[0]) for i in range(40)] == expected


def test_numpy_chooses_where_the_library_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    logits = np.stack([random_row(random, 90) for _ in range(9)])
    draws = [random_draw(random, 90) for _ in range(9)]
    native = choose(logits, draws)
    monkeypatch.setattr(library, "missing", lambda: "it is missing")
    np.testing.assert_array_equal(choose(logits, draws), native)


def test_draws_follow_the_probabilities() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    draws = [Draw(1.0, 0, 1.0, 0.0, 3, number) for number in range(20_000)]
    tokens = choose(np.tile(row, (len(draws), 1)), draws)
    np.testing.assert_allclose(np.bincount(tokens) / len(draws), [0.5, 0.3, 0.15, 0.05], atol=0.012)


def test_random_bits_are_philox() -> None:
    # known answer of Random123: 6627e8d5 e169c58d bc57ac4c 9b00dbd8
    assert random_bits(0, 0) == 0xE169C58D6627E8D5
    bits = [
        random_bits(seed, number) for seed in (0, 1, 2**32, 2**64 - 1) for number in (0, 1, 2**32, 2**64 - 1)
    ]
    assert len(set(bits)) == 16
    assert all(0 <= each < 2**64 for each in bits)


def test_units_are_proportional_to_probabilities() -> None:
    x = -np.geomspace(1e-7, 100, 20_000).astype(np.float32)
    np.testing.assert_allclose(exponential(x)[x > -87], np.exp(x.astype(np.float64))[x > -87], rtol=3e-7)
    units = weigh(np.array([3, 2, -np.inf, -200], np.float32), 1.0, 0)
    assert units.tolist() == [MOST_UNITS, pytest.approx(MOST_UNITS / np.e, rel=1e-6), 0, 0]
    assert weigh(np.array([3, 2, 3, 1], np.float32), 1.0, 1).tolist() == [MOST_UNITS, 0, MOST_UNITS, 0]


@pytest.mark.parametrize("top", [0, 1, 20, 700])
def test_scores_are_log_softmax(top: int, level: str) -> None:
    random = np.random.default_rng(top)
    logits = np.rint(random.normal(0, 4, (6, 700)) * 4).astype(np.float32) / 4  # with ties
    logits[1, ::2] = -np.inf
    tokens = random.integers(0, 700, 6).astype(np.int32)
    with np.errstate(divide="ignore"):
        exact = np.log(np.exp(logits.astype(np.float64) - logits.max()))
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    for threads in (1, 2):
        found = score(logits, tokens, top, threads=threads)
        np.testing.assert_allclose(found.scores, exact[np.arange(6), tokens], rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found.top_ids, np.argsort(-logits, 1, kind="stable")[:, :top])
        np.testing.assert_allclose(
            found.top_scores,
            np.take_along_axis(exact, found.top_ids.astype(np.int64), 1),
            rtol=1e-6,
            atol=1e-6,
        )


def test_levels_score_alike() -> None:
    random, found = np.random.default_rng(1), []
    logits = random.normal(0, 5, (5, 3001)).astype(np.float32)
    for name in library.isa_levels():
        with library.level(name):
            result = score(logits, np.arange(5, dtype=np.int32), 9, threads=1)
        found.append(b"".join(each.tobytes() for each in result))
    assert len(set(found)) == 1


@pytest.mark.parametrize("damage", [np.nan, np.inf])
def test_a_damaged_row_leaves_the_others_alone(damage: float, level: str) -> None:
    logits = np.zeros((3, 40), np.float32)
    logits[1, 17] = damage
    assert choose(logits, [GREEDY] * 3).tolist() == [0, -1, 0]
    found = score(logits, np.zeros(3, np.int32), 2, threads=1)
    assert (
        np.isnan(found.scores).tolist() == np.isnan(found.top_scores[:, 1]).tolist() == [False, True, False]
    )


def test_no_token_is_left() -> None:
    logits, none = np.full((2, 40), -np.inf, np.float32), np.zeros(2, np.int32)
    logits[1] = 0
    assert choose(logits, [GREEDY, GREEDY._replace(mask=none)]).tolist() == [-1, -1]


def mask(words: int) -> Int32s:
    return np.ones(words, np.int32)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: choose(x, [GREEDY]),
        lambda x: choose(x, [GREEDY, GREEDY._replace(mask=mask(1))]),
        lambda x: choose(x, [GREEDY, GREEDY._replace(mask=mask(3))]),
        lambda x: choose(x, [GREEDY, GREEDY._replace(temperature=-1.0)]),
        lambda x: choose(x, [GREEDY, GREEDY._replace(top_k=-1)]),
        lambda x: choose(x, [GREEDY] * 2, threads=0),
        lambda x: score(x, np.zeros(1, np.int32), 0, threads=1),
        lambda x: score(x, np.full(2, 40, np.int32), 0, threads=1),
        lambda x: score(x, np.zeros(2, np.int32), 41, threads=1),
        lambda x: score(x, np.zeros(2, np.int32), -1, threads=1),
    ],
)
def test_arguments_that_do_not_fit_are_refused(call: Any) -> None:
    with pytest.raises(ZeropointError):
        call(np.zeros((2, 40), np.float32))


def test_a_vocabulary_without_end_is_refused() -> None:
    with pytest.raises(SchemeError, match="fewer than"):
        choose(np.broadcast_to(np.float32(0), (1, 2**23)), [GREEDY])
