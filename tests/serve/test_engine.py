"""The engine: events, ends, refusals, failures."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import pytest

from tests.serve.drive import Answer, engine_of, run, submit
from tests.serve.small_model import small_decoder
from zeropoint.errors import BusyError, SchemeError, UsageError
from zeropoint.runtime.generation import generate
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.session import Session
from zeropoint.runtime.sampling import Sampling
from zeropoint.serve.request import CANCELLED, FAILED, LENGTH, STOP, Event, Finished, PromptRead, Request
from zeropoint.values.arrays import Int32s


def prompt(length: int, seed: int = 0) -> tuple[int, ...]:
    return tuple(np.random.default_rng(seed).integers(0, 256, length).tolist())


def alone(request: Request) -> list[int]:
    """Return the tokens that `generate`, the generation loop of all engines, chooses."""
    session = Session(small_decoder(), threads=1)
    return generate(
        session.feed, request.prompt, max_new_tokens=request.max_new_tokens, sampling=request.sampling,
        stop=request.stop_tokens,
    )  # fmt: skip


def log_softmax(logits: np.ndarray) -> np.ndarray:
    values = logits.astype(np.float64)
    return (
        values
        - np.log(np.exp(values - values.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - values.max(-1, keepdims=True)
    )


def test_a_text_is_what_the_generation_loop_gives() -> None:
    requests = [
        Request(prompt(5), 20),
        Request(prompt(200, 1), 12),
        Request(prompt(70, 2), 9, Sampling(temperature=1.0, top_p=0.9, seed=5)),
        Request((3,), 4),
    ]
    with engine_of(small_decoder()) as engine:
        answers = run(engine, *requests)
        assert engine.stats().free_pages == engine.stats().pages
    for request, answer in zip(requests, answers, strict=True):
        assert answer.tokens == alone(request)
        assert answer.end == Finished(LENGTH)
        assert answer.prompt_read == PromptRead(0)


def test_a_stop_token_is_the_last_one() -> None:
    free = alone(Request(prompt(9), 10))
    request = Request(prompt(9), 10, stop_tokens=frozenset({free[4]}))
    with engine_of(small_decoder()) as engine:
        (answer,) = run(engine, request)
    assert answer.tokens == free[: free.index(free[4]) + 1]
    assert answer.end == Finished(STOP)


def test_scores_of_prompt_and_answer() -> None:
    request = Request(prompt(100), 6, logprobs=3, prompt_logprobs=2)
    with engine_of(small_decoder()) as engine:
        (answer,) = run(engine, request)
    text = [*request.prompt, *answer.tokens]
    expected = log_softmax(Session(small_decoder(), threads=1).feed_all(text))
    scores = [*answer.prompt_read.scores, *(new.score for new in answer.new_tokens)]
    assert len(scores) == len(text) - 1
    for position, score in enumerate(scores):
        assert score is not None
        row = expected[position]
        assert score.logprob == pytest.approx(row[text[position + 1]], abs=1e-5)
        count = 2 if position < len(request.prompt) - 1 else 3
        best = np.argsort(-row, kind="stable")[:count]
        assert [id for id, _ in score.top] == best.tolist()
        assert [value for _, value in score.top] == pytest.approx(row[best].tolist(), abs=1e-5)


def test_scores_alone_and_logits_alone() -> None:
    tokens = prompt(150)
    requests = [
        Request(tokens, 0, prompt_logprobs=0),
        Request(tokens, 0, prompt_logits=100),
        Request(tokens[:1], 0, prompt_logprobs=1),
        Request(tokens[:1], 0, prompt_logits=1),
        Request(tokens, 2, prompt_logits=150, prompt_logprobs=1),
    ]
    with engine_of(small_decoder()) as engine:
        scores, logits, nothing, single, both = run(engine, *requests)
    expected = Session(small_decoder(), threads=1).feed_all(tokens)
    assert len(scores.prompt_read.scores) == 149
    assert np.array_equal(logits.prompt_read.logits, expected[50:])
    assert nothing.events == [PromptRead(0), Finished(LENGTH)]
    assert np.array_equal(single.prompt_read.logits, expected[:1])
    assert np.array_equal(both.prompt_read.logits, expected)
    assert [s.logprob for s in both.prompt_read.scores] == [s.logprob for s in scores.prompt_read.scores]
    assert len(both.tokens) == 2


class Only:
    """A grammar that allows only the text `tokens`."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.left = list(tokens)

    def mask(self) -> Int32s | None:
        bits = np.zeros(9 * 32, np.uint8)
        bits[self.left[0]] = 1
        return np.packbits(bits, bitorder="little").view(np.int32)

    def accept(self, token: int) -> bool:
        assert token == self.left.pop(0)
        return not self.left


def test_a_grammar_decides() -> None:
    with engine_of(small_decoder()) as engine:
        answer, impossible = run(
            engine, Request(prompt(5), 9, constraint=Only([7, 8, 9])), Request(prompt(5), 9, constraint=Nothing())
        )  # fmt: skip
    assert answer.tokens == [7, 8, 9]
    assert answer.end == Finished(STOP)
    assert impossible.tokens == []
    assert impossible.end == Finished(FAILED, "the grammar allows no token that the model can choose")


class Broken(Only):
    def accept(self, token: int) -> bool:
        raise ValueError("no state")


def test_a_grammar_that_fails_ends_its_request_only() -> None:
    with engine_of(small_decoder()) as engine:
        answer, sound = run(
            engine, Request(prompt(5), 9, constraint=Broken([7])), Request(prompt(5), 3, logprobs=0)
        )
    assert answer.tokens == [7]
    assert answer.end == Finished(FAILED, "the grammar failed: no state")
    assert sound.tokens == alone(Request(prompt(5), 3))


class Nothing(Only):
    def __init__(self) -> None:
        super().__init__([270])  # beyond the vocabulary


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request((), 1), "the prompt is empty"),
        (Request((260,), 1), "vocabulary has 260"),
        (Request((1,), 0), "at least 1, not 0"),
        (Request((1,), -1, prompt_logprobs=0), "at least 0, not -1"),
        (Request((1, 2), 1, prompt_logits=3), "prompt_logits must be 0 to 2"),
        (Request((1, 2), 1, logprobs=-1), "logprobs and prompt_logprobs must be 0 or more"),
        (Request((1, 2), 1, prompt_logprobs=-1), "logprobs and prompt_logprobs must be 0 or more"),
        (Request((1,) * 1000, 25), "1000 tokens and the answer up to 25"),
    ],
)
def test_requests_that_can_never_run(request_: Request, words: str) -> None:
    with engine_of(small_decoder()) as engine, pytest.raises(UsageError, match=words):
        submit(engine, request_)


def test_a_full_queue_refuses() -> None:
    with engine_of(small_decoder(), max_running=1, max_queue=2) as engine:
        answers = [submit(engine, Request(prompt(9, i), 400)) for i in range(3)]
        with pytest.raises(BusyError, match="3 requests are running or waiting"):
            submit(engine, Request(prompt(9), 1))
        assert answers[1].ticket is not None
        answers[1].ticket.cancel()
        assert answers[1].wait().end == Finished(CANCELLED)
        answers.append(submit(engine, Request(prompt(9), 1)))
        for answer in answers:
            assert answer.ticket is not None
            answer.ticket.cancel()
            answer.ticket.cancel()
            answer.wait()
        assert engine.stats().free_pages == engine.stats().pages


def test_draining_finishes_what_runs_and_cancels_the_rest() -> None:
    with engine_of(small_decoder(), max_running=1) as engine:
        answer = submit(engine, Request(prompt(9), 30))
        engine.drain(60)
        assert answer.end == Finished(LENGTH)
        with pytest.raises(BusyError, match="shutting down"):
            submit(engine, Request(prompt(9), 1))
    with engine_of(small_decoder(), max_running=1) as engine:
        answers = [submit(engine, Request(prompt(9), 900)) for _ in range(2)]
        engine.drain(0)
        assert [answer.end for answer in answers] == [Finished(CANCELLED)] * 2


def test_a_listener_that_raises_loses_its_request_only(caplog: pytest.LogCaptureFixture) -> None:
    called = threading.Event()

    def broken(events: Sequence[Event]) -> None:
        called.set()
        raise RuntimeError("no")

    with engine_of(small_decoder()) as engine:
        engine.submit(Request(prompt(5), 500), broken)
        (answer,) = run(engine, Request(prompt(5), 20))
        assert called.is_set()
        assert engine.stats().running == 0
    assert answer.tokens == alone(answer.request)
    assert "a listener failed" in caplog.text


def test_a_step_that_fails_ends_only_the_requests_that_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Decoder.forward

    def failing(self: Decoder, cache: object, tokens: Int32s, *rest: object, **options: object) -> object:
        if 255 in tokens:
            raise SchemeError("no memory for token 255")
        return forward(self, cache, tokens, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Decoder, "forward", failing)
    requests = [Request((1, 2, 3), 20), Request((255,), 20), Request((4,) * 100, 20)]
    with engine_of(small_decoder()) as engine:
        first, failed, last = run(engine, *requests)
        assert engine.stats().free_pages == engine.stats().pages
    assert failed.events == [Finished(FAILED, "no memory for token 255")]
    monkeypatch.undo()
    assert [first.tokens, last.tokens] == [alone(requests[0]), alone(requests[2])]


def test_logits_that_are_not_finite_end_their_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = Decoder.forward

    def damaged(self: Decoder, cache: object, tokens: Int32s, *rest: object, **options: object) -> object:
        logits = forward(self, cache, tokens, *rest, **options)  # type: ignore[arg-type]
        logits[np.asarray(tokens)[np.asarray(options["wanted"]) != 0] == 255] = np.nan
        return logits

    monkeypatch.setattr(Decoder, "forward", damaged)
    with engine_of(small_decoder()) as engine:
        *failed, sound = run(
            engine, Request((255,), 3), Request((255, 1, 2), 3, prompt_logprobs=0), Request((1, 2), 3)
        )
    for answer in failed:
        assert answer.end.reason == FAILED
        assert "not finite" in answer.end.error
    assert sound.end == Finished(LENGTH)


def test_answers_are_collected_in_order() -> None:
    answer = Answer(Request((1,), 1))
    answer([PromptRead(0)])
    answer([Finished(STOP)])
    with pytest.raises(AssertionError):
        answer([Finished(STOP)])


def test_a_shared_beginning_is_read_once() -> None:
    beginning = prompt(300)
    first, second = Request((*beginning, 1), 5), Request((*beginning, 2), 5)
    with engine_of(small_decoder()) as engine:
        answers = [*run(engine, first), *run(engine, second)]
        stats = engine.stats()
    assert [answer.prompt_read.cached_tokens for answer in answers] == [0, 256]
    assert (stats.prefix_queries, stats.prefix_hits, stats.prompt_tokens) == (602, 256, 602 - 256)
    assert (stats.new_tokens, stats.running, stats.waiting) == (10, 0, 0)
    assert stats.free_pages == stats.pages
    assert [answer.tokens for answer in answers] == [alone(first), alone(second)]


def test_sharing_can_be_turned_off() -> None:
    request = Request(prompt(300), 1)
    with engine_of(small_decoder(), prefix_sharing=False) as engine:
        answers = [*run(engine, request), *run(engine, request)]
        assert engine.stats().prefix_hits == 0
    assert [answer.prompt_read.cached_tokens for answer in answers] == [0, 0]


def test_requests_that_give_up_their_pages_lose_nothing() -> None:
    requests = [Request(prompt(60, seed), 190, logprobs=0) for seed in range(3)]
    with engine_of(small_decoder(), cache_tokens=320) as engine:
        answers = run(engine, *requests)
        assert engine.stats().preemptions > 0
        assert engine.max_positions == 320
    for answer in answers:
        assert answer.tokens == alone(answer.request)
        assert answer.prompt_read == PromptRead(0)


def test_options_of_sampling_and_scores_go_together() -> None:
    """Scores are those of the model's own logits, whatever the penalties."""
    options = {"repetition_penalty": 1.4, "presence_penalty": 0.5, "logit_bias": {7: 100.0}}
    plain, biased = (
        Request(prompt(30), 1, logprobs=5),
        Request(prompt(30), 3, Sampling(**options), logprobs=5),
    )
    with engine_of(small_decoder()) as engine:
        plain_answer, biased_answer = run(engine, plain, biased)
    assert biased_answer.tokens == [7, 7, 7]
    first, other = plain_answer.new_tokens[0].score, biased_answer.new_tokens[0].score
    assert first is not None
    assert other is not None
    assert first.top == other.top
    assert other.logprob < first.logprob


def test_guessed_tokens_change_nothing_but_the_number_of_steps() -> None:
    request = Request((*prompt(20), *prompt(20)), 150, logprobs=1)
    with engine_of(small_decoder(), drafting=False) as engine:
        (plain,) = run(engine, request)
        steps = engine.stats().steps
    with engine_of(small_decoder()) as engine:
        (drafted,) = run(engine, request)
        stats = engine.stats()
    assert drafted.new_tokens == plain.new_tokens
    assert 0 < stats.right_guesses <= stats.guesses
    assert stats.steps == steps - stats.right_guesses
