"""Chooses the next tokens of many requests, and computes log-probabilities, in a few native calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zeropoint.errors import UsageError, ZeropointError, reason
from zeropoint.kernels import library, sampling
from zeropoint.runtime.native import draw
from zeropoint.serve.job import Job
from zeropoint.serve.request import NewToken, TokenScore
from zeropoint.values.arrays import Floats, Int32s


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request has no next token."""

    error: ZeropointError


def choose(logits: Floats, jobs: Sequence[Job], *, threads: int) -> list[NewToken | Failure]:
    """Return each job's next token from its row of `logits`, which this function may change."""
    outcomes: list[NewToken | Failure | None] = [None] * len(jobs)
    originals, draws = dict[int, Floats](), list[sampling.Draw]()
    for row, job in enumerate(jobs):
        mask = _mask(job, logits.shape[1])
        if isinstance(mask, Failure):
            outcomes[row], mask = mask, None
        sampler = job.sampler
        draws.append(sampler.sampling.draw(sampler.count, mask))
        if job.adjusts:
            if job.request.logprobs is not None:
                originals[row] = logits[row].copy()
            logits[row] = sampler.adjust(logits[row])
    tokens = sampling.choose(logits, draws, threads=threads)
    for row, original in originals.items():
        logits[row] = original
    scored = [row for row, job in enumerate(jobs) if job.request.logprobs is not None and tokens[row] >= 0]
    scores = dict[int, TokenScore]()
    if scored:
        tops = [jobs[row].request.logprobs or 0 for row in scored]
        rows = logits if len(scored) == len(jobs) else logits[scored]
        scores = dict(zip(scored, score(rows, tokens[scored], tops, threads=threads), strict=True))
    for row, token in enumerate(tokens.tolist()):
        if token < 0:
            outcomes[row] = outcomes[row] or Failure(draw.no_token(logits[row]))
        elif outcomes[row] is None:
            outcomes[row] = NewToken(token, scores.get(row))
            jobs[row].sampler.add(token)
    return [outcome for outcome in outcomes if outcome is not None]


def note_prompt(rows: Floats, job: Job, *, threads: int) -> None:
    """Note that the logits up to `job.read` are used. Before `PromptRead` is sent, store prompt scores and logits.

    `rows` are the logits after the last `len(rows)` tokens that the job has read. Only the scores and logits that the
    request asked for are stored. Raises `ArtifactError` if a scored row is not finite.
    """
    if not len(rows):
        return
    request, first = job.request, job.read - len(rows)
    job.logits_from = job.read
    if job.announced:
        return
    scored = request.prompt[first + 1 : job.read + 1]
    if request.prompt_logprobs is not None and scored:
        tops = [request.prompt_logprobs] * len(scored)
        job.scores += score(rows[: len(scored)], np.array(scored, np.int32), tops, threads=threads)
    if request.prompt_logits:
        unwanted = max(len(request.prompt) - request.prompt_logits - first, 0)
        job.logits += [row.copy() for row in rows[unwanted:]]


def score(logits: Floats, tokens: Int32s, tops: Sequence[int], *, threads: int) -> list[TokenScore]:
    """Return the score of each row's token in `tokens`. `tops`: how many most likely tokens to return for each row.

    Raises `ArtifactError` if a row's logits are not finite.
    """
    result = draw.scores(logits, tokens, min(max(tops), logits.shape[1]), threads=threads)
    columns = (result.scores.tolist(), result.top_ids.tolist(), result.top_scores.tolist(), tops)
    return [
        TokenScore(own, tuple(zip(ids[:top], values[:top], strict=True)))
        for own, ids, values, top in zip(*columns, strict=True)
    ]


def _mask(job: Job, vocab: int) -> Int32s | Failure | None:
    """Return the mask of the tokens that the job's grammar allows; None if all are, `Failure` if the grammar fails."""
    if job.request.constraint is None:
        return None
    try:
        mask = job.request.constraint.mask()
        if mask is not None:
            library.require_shape("the mask", mask, (-(-vocab // 32),))
    except Exception as error:
        return Failure(UsageError(f"the grammar failed: {reason(error)}"))
    return mask
