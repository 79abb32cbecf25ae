"""Scores of an answer by several models, token by token, and the means over the answers of a chat page's session.

A *flip* is a token at which the most likely tokens of two models differ.

Scoring is teacher-forced: every model reads the same prompt and the same answer, so that their predictions of each
token are paired. The answer is read in parts of a few tokens, which bounds the memory of the logits and lets other
requests run in between; what was read before comes from the models' prefix caches.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

import numpy as np

from zeropoint.errors import BusyError, UsageError, ZeropointError
from zeropoint.kernels.divergence import divergence
from zeropoint.runtime.sampling import likeliest
from zeropoint.runtime.streaming import TextStream
from zeropoint.serve.request import CANCELLED, FAILED, Event, Finished, Model, PromptRead, Request, Ticket
from zeropoint.tokenizer import Tokenizer
from zeropoint.values.arrays import Doubles, Logits, Tokens

#: The most bytes of logits held at once, for all models together, and the most tokens of one part.
LOGITS_BYTES, MOST_ROWS = 64 << 20, 64


@dataclass(frozen=True, slots=True)
class Scores:
    """How one model predicts some tokens of the answer, after the same text as the reference model.

    Per token: `kl` is KL(reference || model) in nats, `nll` is -ln p[token] in nats, `agrees` says whether both models
    have the same most likely token, and `choices` is this model's most likely token (None where the models agree).
    """

    kl: list[float]
    nll: list[float]
    agrees: list[bool]
    choices: list[int | None]


@dataclass(frozen=True, slots=True)
class ScoredTokens:
    """Scores of the answer's `tokens`, which begin at index `start` of the answer.

    - `reference`: the first model's predictions. Its `kl` is 0; its `choices` are set where another model disagrees;
    - `others`: the other models' predictions, in the order of the models.
    """

    start: int
    tokens: tuple[int, ...]
    reference: Scores
    others: tuple[Scores, ...]


def check_models(models: Sequence[Model], text: str) -> None:
    """Raise `UsageError` if the models split `text` into different tokens, or differ in the number of logits."""
    first, *others = models
    tokens = first.tokenizer.encode(text)
    for model in others:
        if model.vocab_size != first.vocab_size or model.tokenizer.encode(text) != tokens:
            raise UsageError(
                f"{first.name} and {model.name} have different tokens, so their predictions cannot be compared: choose "
                "models with the same tokenizer"
            )


async def score(
    models: Sequence[Model], prompt: Sequence[int], answer: Sequence[int], *, client: str = ""
) -> AsyncGenerator[ScoredTokens, None]:
    """Yield how every model predicts the tokens `answer` after the tokens `prompt`; the first model is the reference.

    Raises `UsageError` if the text is too long for a model, `BusyError` if a model has no room now, `ArtifactError` if
    logits are not finite. Closing the iterator cancels the requests that still run.
    """
    rows = LOGITS_BYTES // (4 * models[0].vocab_size * len(models))
    rows = min(max(rows, 1), MOST_ROWS)
    for start in range(0, len(answer), rows):
        tokens = tuple(answer[start : start + rows])
        # the last of `tokens` is predicted from the text before it, so it is not read
        text = (*prompt, *answer[: start + len(tokens) - 1])
        logits = await _all_logits(models, text, len(tokens), client)
        yield await asyncio.to_thread(_compare, start, tokens, logits)


async def _all_logits(models: Sequence[Model], text: tuple[int, ...], rows: int, client: str) -> list[Logits]:
    """Return the logits `[rows, vocab]` of every model after each of the last `rows` tokens of a text."""
    tasks = [asyncio.create_task(_logits(model, text, rows, client)) for model in models]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _logits(model: Model, text: tuple[int, ...], rows: int, client: str) -> Logits:
    """Return the logits `[rows, vocab]` of one model after each of the last `rows` tokens of a text."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[Logits] = loop.create_future()
    events: list[Event] = []

    def take(new: Sequence[Event]) -> None:
        events.extend(new)
        if isinstance(events[-1], Finished) and not result.done():
            try:
                result.set_result(_logits_of(events))
            except ZeropointError as cause:
                result.set_exception(cause)

    def listen(new: Sequence[Event]) -> None:
        with contextlib.suppress(RuntimeError):  # the server has ended, and nobody waits
            loop.call_soon_threadsafe(take, new)

    request = Request(text, max_new_tokens=0, prompt_logits=rows)
    tickets: list[Ticket] = []
    abandoned = False  # nobody waits for the result any more

    def submit() -> None:
        tickets.append(model.submit(request, listen, client=client))
        if abandoned:
            tickets[0].cancel()

    try:
        await asyncio.to_thread(submit)  # which may load the weights, and so take seconds
        return await result
    finally:
        abandoned = True  # first, so that `submit` cancels a ticket that is not in the list yet
        for ticket in tickets:
            ticket.cancel()


def _logits_of(events: Sequence[Event]) -> Logits:
    """Return the logits in a request's events. Raises `BusyError` or `ZeropointError` if the request did not finish."""
    for event in events:
        if isinstance(event, PromptRead) and event.logits is not None:
            return event.logits
        if isinstance(event, Finished) and event.reason == CANCELLED:
            raise BusyError("the server is shutting down")
        if isinstance(event, Finished) and event.reason == FAILED:
            raise ZeropointError(event.error)
    raise ZeropointError("the engine returned no logits")


def _compare(start: int, tokens: tuple[int, ...], logits: Sequence[Logits]) -> ScoredTokens:
    """Return the scores of one part; `logits` are those of each model, `[tokens, vocab]`."""
    reference = logits[0]
    targets = np.array(tokens, np.int64)
    choices = [likeliest(each) for each in logits]
    # the reference is compared with itself, too: KL 0, its own losses, no flips
    results = [divergence(reference, each, targets, threads=1) for each in logits]
    flipped = ~np.logical_and.reduce([result.agrees for result in results])
    shown = [flipped, *(~result.agrees for result in results[1:])]
    own, *others = (
        Scores(
            result.kl.tolist(),
            result.nll.tolist(),
            result.agrees.tolist(),
            [int(token) if show else None for token, show in zip(best, shows, strict=True)],
        )
        for result, best, shows in zip(results, choices, shown, strict=True)
    )
    return ScoredTokens(start, tokens, own, tuple(others))


def token_texts(tokenizer: Tokenizer, tokens: Sequence[int]) -> list[str]:
    """Return the text that each token adds. Where several tokens form one character, the last of them adds it."""
    stream = TextStream(tokenizer.decode)
    texts = [stream.push(token) for token in tokens]
    if texts:
        texts[-1] += stream.finish()
    return texts


def text_after(tokenizer: Tokenizer, before: int, token: int) -> str:
    """Return the text of `token` after the token `before`. Some tokenizers write a space only between tokens."""
    head = tokenizer.decode([before])
    return tokenizer.decode([before, token])[len(head) :]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean over tokens with its 95 % interval; `low` and `high` are None if there are too few tokens for one."""

    value: float
    low: float | None
    high: float | None


def intervals(kl: Sequence[Doubles], flips: Sequence[Doubles]) -> tuple[Interval, Interval]:
    """Return the mean KL divergence and the share of flips (0 or 1 for each token) over answers, with intervals.

    Each array belongs to one answer. Answers are resampled whole, since the tokens of one answer are not independent
    (`zeropoint.evaluate.statistics`, which says what happens with fewer than eight answers).
    """
    from zeropoint.evaluate import statistics

    divergences, flipped = np.concatenate(kl), np.concatenate(flips)
    try:
        draws = statistics.resampler(_answers(kl))
        mean = statistics.estimate_mean(divergences, draws)
        share = statistics.estimate_share(flipped, draws)
    except UsageError:  # fewer than eight tokens, or too many resamples whose values are all equal
        return Interval(float(divergences.mean()), None, None), Interval(float(flipped.mean()), None, None)
    return Interval(mean.value, mean.low, mean.high), Interval(share.value, share.low, share.high)


def paired_interval(first: Sequence[Doubles], second: Sequence[Doubles]) -> Interval:
    """Return the mean of `second - first` over the same tokens, with the interval of a symmetric bootstrap-t."""
    from zeropoint.evaluate import statistics

    differences = np.concatenate(second) - np.concatenate(first)
    try:
        means, errors = statistics.resampler(_answers(first)).studentized(differences)
    except UsageError:
        return Interval(float(differences.mean()), None, None)
    value, error = float(means[0]), float(errors[0])
    if error == 0:
        return Interval(value, value, value)
    # the standard error of a resample of equal differences is 0
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.abs(means[1:] - value) / errors[1:]
    factor = float(np.quantile(np.nan_to_num(ratios, nan=0.0, posinf=np.inf), statistics.CONFIDENCE))
    if not np.isfinite(factor):
        return Interval(value, None, None)
    return Interval(value, value - factor * error, value + factor * error)


def _answers(values: Sequence[Doubles]) -> Tokens:
    """Return, for each token, the index of its answer."""
    return np.repeat(np.arange(len(values)), [len(each) for each in values])
