"""`draw` chooses the next tokens of many texts in one call of the C++ library; `scores` computes log probabilities."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zeropoint.errors import ArtifactError, UsageError, ZeropointError
from zeropoint.kernels import sampling as kernel
from zeropoint.runtime.sampling import NOT_FINITE, Sampling
from zeropoint.values.arrays import Int32s, Logits


def draw(
    logits: Logits,
    samplings: Sequence[Sampling],
    numbers: Sequence[int],
    masks: Sequence[Int32s | None],
    *,
    threads: int,
) -> Int32s:
    """Return the next token, int32 `[n]`, of each row of logits `[n, vocab]` that `Sampler.adjust` has adjusted.

    - `numbers`: for each row, how many tokens of its text were drawn before;
    - `masks`: for each row, the allowed tokens as bits, int32 `[ceil(vocab / 32)]`, lowest bit first, or None.

    A row's token depends on the arguments of that row only, and equals the token that `Sampler` chooses. Raises
    `ArtifactError` if a row's logits are not finite, and `UsageError` if a row's mask allows no token.
    """
    draws = [
        sampling.draw(number, mask) for sampling, number, mask in zip(samplings, numbers, masks, strict=True)
    ]
    tokens = kernel.choose(logits, draws, threads=threads)
    for row in np.flatnonzero(tokens < 0):
        raise no_token(logits[row])
    return tokens


def no_token(logits: Logits) -> ZeropointError:
    """Return the error that says why no token can be drawn from a row of logits `[vocab]`."""
    if np.isfinite(logits.max()):
        return UsageError("the grammar allows no token that the model can choose")
    return ArtifactError(NOT_FINITE)


def scores(logits: Logits, tokens: Int32s, top: int, *, threads: int) -> kernel.Scores:
    """Return log probabilities in nats, computed from raw logits `[n, vocab]`.

    The result has the log probability of each row's token in `tokens` `[n]`, the ids of each row's `top` most likely
    tokens `[n, top]`, most likely first (ties: lowest id first), and the log probabilities of these tokens `[n, top]`.
    Raises `ArtifactError` if a row's logits are not finite.
    """
    result = kernel.score(logits, tokens, top, threads=threads)
    if np.isnan(result.scores).any():
        raise ArtifactError(NOT_FINITE)
    return result
