"""Random mixes of requests on one engine. Each request must get the same answer as it gets alone.

`python -m tests.serve.mixes 0 2000` runs the mixes of the seeds 0 to 1,999.
"""

from __future__ import annotations

import logging
import random
import sys
import time
from dataclasses import asdict, replace
from functools import cache

import numpy as np

from tests.serve.drive import Answer, engine_of, submit
from tests.serve.small_model import VOCAB, small_decoder
from zeropoint.kernels import library
from zeropoint.runtime.native.library import CACHE_TYPES
from zeropoint.runtime.sampling import Sampling
from zeropoint.serve.engine import Engine, EngineOptions
from zeropoint.serve.pace import Pace
from zeropoint.serve.prefix_cache import PAGE
from zeropoint.serve.request import CANCELLED, NewToken, Request

Tokens = tuple[int, ...]


class Loud(logging.Handler):
    """Collects warnings, to notice an engine that gives right answers only because it repeats failed steps."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


class AnyPace(Pace):
    """Reads prompts in parts of any size."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    def budget(self, decoding: int, reading: int) -> int:
        return self._rng.choice([0, 1, 3, 63, 64, 65, 400]) if decoding else self._rng.choice([1, 7, 64, 512])


@cache
def lone_engine(cache_type: str) -> Engine:
    """Return an engine that runs one request after the other, without prefix sharing and guesses."""
    options = EngineOptions(
        max_running=1, max_queue=1000, cache_type=cache_type, prefix_sharing=False, drafting=False
    )
    return Engine(small_decoder(), options)


def any_sampling(rng: random.Random) -> Sampling:
    if rng.random() < 0.4:
        return Sampling()
    sampling = Sampling(
        temperature=rng.choice([0.0, 0.5, 1.0, 2.0]),
        top_k=rng.choice([0, 0, 5, 50]),
        top_p=rng.choice([1.0, 0.9, 0.5]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        seed=rng.randrange(5),
    )
    if rng.random() < 0.5:
        return sampling
    return replace(
        sampling,
        repetition_penalty=rng.choice([1.0, 1.3]),
        presence_penalty=rng.choice([0.0, 0.7]),
        frequency_penalty=rng.choice([0.0, 0.4]),
        logit_bias={rng.randrange(VOCAB): rng.uniform(-5, 5)},
    )


def any_request(rng: random.Random, prompts: list[Tokens], longest: int) -> Request:
    """Return a random request, whose prompt may begin like an earlier one."""
    beginning = rng.choice(prompts)[: rng.choice([0, 64, 65, 128, 400])] if prompts else ()
    length = rng.choice([1, 2, 10, 50, 64, 130])
    prompt = (*beginning, *(rng.randrange(VOCAB) for _ in range(length)))[: longest - 40]
    prompts.append(prompt)
    scored = rng.random()
    return Request(
        prompt,
        min(rng.choice([1, 5, 10, 20, 20, 20, 150]), longest - len(prompt)),
        any_sampling(rng),
        stop_tokens=frozenset(rng.sample(range(VOCAB), 3)),
        logprobs=rng.choice([None, 0, 3]),
        prompt_logprobs=rng.choice([0, 2]) if scored < 0.1 else None,
        prompt_logits=rng.randint(1, len(prompt)) if scored > 0.95 else 0,
    )


def mix(seed: int) -> int:
    """Run one mix and return its number of requests. Raises `AssertionError` if an answer differs."""
    rng = random.Random(seed)
    pages = rng.choice([5, 8, 15, 200])
    cache_type = rng.choice(list(CACHE_TYPES))
    prompts = list[Tokens]()
    count = rng.choice([1, 2, 5, 12, 30, 64])
    level = rng.choice(library.isa_levels())
    options = EngineOptions(
        threads=rng.choice([1, 2]),
        cache_tokens=pages * PAGE,
        cache_type=cache_type,
        max_running=rng.choice([2, 8, 64]),
        prefix_sharing=rng.random() < 0.8,
        drafting=rng.random() < 0.8,
    )
    alone = list[Answer]()
    for _ in range(count):
        request = any_request(rng, prompts, min(pages * PAGE, 700))
        alone.append(submit(lone_engine(cache_type), request).wait())
        prompts.append((*request.prompt, *alone[-1].tokens))  # a next turn of this conversation
    loud = Loud()
    logging.getLogger("zeropoint").addHandler(loud)
    with library.level(level), engine_of(small_decoder(), **asdict(options)) as engine:
        engine._scheduler.pace = AnyPace(rng)
        answers = list[Answer]()
        for expected in alone:
            answers.append(submit(engine, expected.request, client=rng.choice("abc")))
            if rng.random() < 0.1:
                time.sleep(0.003)
            if rng.random() < 0.1:
                ticket = rng.choice(answers).ticket
                assert ticket is not None
                ticket.cancel()
        for answer in answers:
            answer.wait()
        stats = engine.stats()
    logging.getLogger("zeropoint").removeHandler(loud)
    assert not loud.messages, loud.messages
    assert stats.free_pages == stats.pages
    for expected, answer in zip(alone, answers, strict=True):
        check(seed, expected, answer)
    return count


def check(seed: int, expected: Answer, answer: Answer) -> None:
    """Raise `AssertionError` unless an answer is the expected one, or its beginning if it was cancelled."""
    what = (
        f"mix {seed}, prompt of {len(expected.request.prompt)}: {answer.events} instead of {expected.events}"
    )
    assert not any(event.reason == "failed" for event in (answer.end, expected.end)), what
    if answer.end.reason == CANCELLED:
        assert answer.new_tokens == expected.new_tokens[: len(answer.new_tokens)], what
        return
    assert [e for e in answer.events if isinstance(e, NewToken)] == expected.new_tokens, what
    assert answer.end == expected.end, what
    assert answer.prompt_read.scores == expected.prompt_read.scores, what
    assert np.array_equal(answer.prompt_read.logits, expected.prompt_read.logits), what


if __name__ == "__main__":
    first, last = map(int, sys.argv[1:])
    total, started = 0, time.monotonic()
    for number in range(first, last):
        total += mix(number)
        if number % 100 == 99:
            print(f"{number + 1} mixes, {total} requests, {time.monotonic() - started:.0f} s", flush=True)
    print(f"mixes {first} to {last - 1}: {total} requests, no difference")
