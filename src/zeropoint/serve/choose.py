"""The next token of each row of logits, and log-probabilities of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zeropoint.errors import ArtifactError, UsageError, ZeropointError
from zeropoint.serve.job import Job
from zeropoint.serve.request import TokenScore
from zeropoint.values.arrays import Floats, Int32s


def choose(logits: Floats, jobs: Sequence[Job]) -> list[int | ZeropointError]:
    """Return each job's next token from its row of logits, or the error that ends the job."""
    return [_choose(row, job) for row, job in zip(logits, jobs, strict=True)]


def _choose(row: Floats, job: Job) -> int | ZeropointError:
    constraint = job.request.constraint
    try:
        mask = None if constraint is None else constraint.mask()
        return job.sampler(row if mask is None else _masked(row, mask))
    except ZeropointError as error:
        return error
    except Exception as error:
        return UsageError(f"the grammar failed: {error}")


def _masked(row: Floats, mask: Int32s) -> Floats:
    """Return logits with -inf for the tokens that the mask does not allow."""
    allowed = np.unpackbits(mask.view(np.uint8), count=len(row), bitorder="little").astype(bool)
    if not allowed.any():
        raise UsageError("the grammar allows no further token")
    return np.where(allowed, row, np.float32(-np.inf))


def score(logits: Floats, tokens: Sequence[int], top: int) -> list[TokenScore]:
    """Return the score of each token in its row of logits, with the `top` most likely tokens (ties: lowest id)."""
    return [_score(row, token, top) for row, token in zip(logits, tokens, strict=True)]


def _score(row: Floats, token: int, top: int) -> TokenScore:
    values = row.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    if not np.isfinite(values[token]):
        raise ArtifactError("the model's logits are not finite: its weights are damaged, or overflow")
    ids = np.argsort(-values, kind="stable")[:top] if top else ()
    return TokenScore(float(values[token]), tuple((int(i), float(values[i])) for i in ids))
