"""Steps of the decoder: how tokens are cut into steps and sequences changes no result."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.runtime.native.conftest import Artifacts
from zeropoint.errors import SchemeError, UsageError, ZeropointError
from zeropoint.kernels import isa_levels, library
from zeropoint.runtime.native import session
from zeropoint.runtime.native.batch import generate_batch
from zeropoint.runtime.native.library import CACHE_TYPES, Cache, Decoder
from zeropoint.runtime.native.runner import NativeRunner
from zeropoint.runtime.native.session import Session
from zeropoint.runtime.sampling import Sampling

FORMATS = ("int8", "int4", "fp16")
TOKENS = np.random.default_rng(2).integers(0, 256, 90).astype(np.int32)


@pytest.fixture(params=FORMATS)
def decoder(request: pytest.FixtureRequest, artifact_of: Artifacts) -> Decoder:
    # windows, two rotations, norms on both sides and on the heads: the most parts of all families
    return NativeRunner.open(artifact_of("gemma3_text", request.param), threads=1).decoder


def logits_of(
    decoder: Decoder, steps: list[NDArray[np.int32]], threads: int = 1, type: str = "float16"
) -> NDArray[np.float32]:
    cache, found, first = decoder.cache(256, type=type), [], 0
    for step in steps:
        positions = np.arange(first, first + len(step), dtype=np.int32)
        found.append(decoder.forward(cache, step, np.zeros_like(step), positions, threads=threads))
        first += len(step)
    return np.concatenate(found)


@pytest.mark.parametrize(
    "format",
    ["fp16", "bf16", "int8", "int5", "int4", "int4:g16:asym", "int8:channel:a8g32", "int4:g32:asym:a8g16",
     "int8:a8token"],
)  # fmt: skip
@pytest.mark.parametrize("level", isa_levels())
def test_chunks_give_the_same_bits(level: str, format: str, artifact_of: Artifacts) -> None:
    decoder = NativeRunner.open(artifact_of("gemma3_text", format), threads=1).decoder
    tokens = TOKENS[:72]  # more than a page of the cache
    with library.level(level):
        for cache_type in CACHE_TYPES:
            whole = logits_of(decoder, [tokens], type=cache_type)
            splits = [np.split(tokens, [1, 8, 40, 41]), np.split(tokens, [17, 33])]
            if cache_type == "float16":
                splits.append(list(tokens[:, None]))
            for steps in splits:
                np.testing.assert_array_equal(logits_of(decoder, steps, type=cache_type), whole)


def test_threads_do_not_matter(decoder: Decoder) -> None:
    np.testing.assert_array_equal(
        logits_of(decoder, [TOKENS], threads=1), logits_of(decoder, [TOKENS], threads=2)
    )


def test_eight_mixed_sequences_decode_as_alone(decoder: Decoder) -> None:
    lengths = [1, 3, 5, 8, 13, 21, 30, 34]
    prompts = [TOKENS[i : i + length] for i, length in enumerate(lengths)]
    together = generate_batch(
        decoder, [prompt.tolist() for prompt in prompts], max_new_tokens=12, sampling=Sampling(), threads=1
    )
    assert together == [alone(decoder, prompt, 12) for prompt in prompts]
    stop = {together[2][3], together[5][7]}
    stopped = generate_batch(
        decoder,
        [prompt.tolist() for prompt in prompts],
        max_new_tokens=12,
        sampling=Sampling(),
        stop=stop,
        threads=1,
    )
    for short, long in zip(stopped, together, strict=True):
        ends = [i for i, token in enumerate(long) if token in stop]
        assert short == long[: ends[0] + 1 if ends else 12]


def test_a_batch_refuses_what_does_not_fit(decoder: Decoder) -> None:
    for prompts in ([[1], []], [[1] * 120], [[999]]):
        with pytest.raises(UsageError):
            generate_batch(decoder, prompts, max_new_tokens=20, sampling=Sampling(), threads=1)
    assert generate_batch(decoder, [], max_new_tokens=20, sampling=Sampling(), threads=1) == []


def alone(decoder: Decoder, prompt: NDArray[np.int32], count: int) -> list[int]:
    sequence, out = Session(decoder, threads=1), list[int]()
    fed = prompt.tolist()
    while len(out) < count:
        out.append(int(sequence.feed(fed).argmax()))
        fed = out[-1:]
    return out


def test_wanted_rows_are_those_of_all(decoder: Decoder) -> None:
    every = logits_of(decoder, [TOKENS])
    wanted = np.zeros(len(TOKENS), np.uint8)
    wanted[[3, 50, 89]] = 1
    positions = np.arange(len(TOKENS), dtype=np.int32)
    some = decoder.forward(
        decoder.cache(256), TOKENS, np.zeros_like(TOKENS), positions, wanted=wanted, threads=1
    )
    np.testing.assert_array_equal(some, every[[3, 50, 89]])


def test_truncating_forgets(decoder: Decoder) -> None:
    cache = decoder.cache(256)
    forward(decoder, cache, TOKENS[:40], 0)
    cache.truncate(10)
    assert cache.length() == 10
    again = forward(decoder, cache, TOKENS[50:60], 10)
    fresh = logits_of(decoder, [TOKENS[:10], TOKENS[50:60]])[10:]
    np.testing.assert_array_equal(again, fresh)


def forward(decoder: Decoder, cache: Cache, tokens: NDArray[np.int32], first: int) -> NDArray[np.float32]:
    positions = np.arange(first, first + len(tokens), dtype=np.int32)
    return decoder.forward(cache, tokens, np.zeros_like(tokens), positions, threads=1)


@pytest.mark.parametrize(
    ("tokens", "sequence", "first"),
    [([260], 0, 0), ([-1], 0, 0), ([1], 1, 0), ([1], -1, 0), ([1], 0, 5), ([1] * 65, 0, 0)],
)
def test_a_bad_step_is_refused_and_changes_nothing(
    tokens: list[int], sequence: int, first: int, decoder: Decoder
) -> None:
    cache = decoder.cache(64)
    given = np.array(tokens, np.int32)
    positions = np.arange(first, first + len(given), dtype=np.int32)
    with pytest.raises(ZeropointError):
        decoder.forward(cache, given, np.full_like(given, sequence), positions, threads=1)
    assert cache.length() == 0


def test_a_session_grows_and_chunks(decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logits_of(decoder, [TOKENS])[-1]
    monkeypatch.setattr(session, "CHUNK", 16)
    monkeypatch.setattr(session, "GROWTH", 32)
    sequence = Session(decoder, threads=1)
    for part in np.split(TOKENS, [5, 37, 70]):
        last = sequence.feed(part.tolist()).copy()
    np.testing.assert_array_equal(last, whole)
    assert sequence.tokens == TOKENS.tolist()


def test_several_threads_may_step_at_once(decoder: Decoder) -> None:
    want, found = alone(decoder, TOKENS[:20], 8), {}

    def work(number: int) -> None:
        found[number] = alone(decoder, TOKENS[:20], 8)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(found.values()) == [want] * 4


@pytest.mark.parametrize("type", CACHE_TYPES)
def test_a_sequence_shares_the_beginning_of_another(type: str, decoder: Decoder) -> None:
    cache = decoder.cache(256, sequences=2, type=type)
    read_into(decoder, cache, TOKENS[:80], 0)
    used = cache.pages - cache.free_pages
    cache.share(0, 1, 70)  # a whole page, and a copy of six positions
    assert (cache.length(1), cache.pages - cache.free_pages) == (70, used + 1)
    whole = logits_of(decoder, [TOKENS], type=type)
    np.testing.assert_array_equal(read_into(decoder, cache, TOKENS[70:], 1), whole[70:])
    cache.truncate(30, sequence=1)  # into the page that both use
    other = np.roll(TOKENS, 7)[:20]
    found = read_into(decoder, cache, other, 1)
    np.testing.assert_array_equal(found, logits_of(decoder, [TOKENS[:30], other], type=type)[30:])
    np.testing.assert_array_equal(read_into(decoder, cache, TOKENS[80:], 0), whole[80:])
    cache.truncate(0)
    cache.truncate(0, sequence=1)
    assert cache.free_pages == cache.pages


def read_into(
    decoder: Decoder, cache: Cache, tokens: NDArray[np.int32], sequence: int
) -> NDArray[np.float32]:
    positions = np.arange(len(tokens), dtype=np.int32) + cache.length(sequence)
    return decoder.forward(cache, tokens, np.full_like(tokens, sequence), positions, threads=1)


def test_a_full_cache_refuses_and_changes_nothing(decoder: Decoder) -> None:
    cache = decoder.cache(64, sequences=3)
    assert (cache.pages, cache.free_pages) == (3, 3)
    read_into(decoder, cache, TOKENS[:65], 0)
    read_into(decoder, cache, TOKENS[:1], 1)
    wrong = [(0, 0, 0), (0, 1, 1), (0, 2, 66), (0, 2, -1), (0, 3, 0), (2**32, 2, 0), (0, 2, 2**64)]
    for source, target, length in wrong:
        with pytest.raises(SchemeError):
            cache.share(source, target, length)
    with pytest.raises(SchemeError, match="cache is full"):
        cache.share(0, 2, 10)
    assert cache.length(2) == 0
    cache.share(0, 2, 64)
    with pytest.raises(SchemeError, match="cache is full"):
        read_into(decoder, cache, TOKENS[:1], 2)
    assert [cache.length(i) for i in range(3)] == [65, 1, 64]
