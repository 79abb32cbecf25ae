"""The next tokens of many texts, and log probabilities, in one call of the C++ library."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.kernels import sampling as kernel
from zeropoint.runtime.sampling import NOT_FINITE, Sampling, likeliest
from zeropoint.values.arrays import Int32s, Logits


def draw(
    logits: Logits,
    samplings: Sequence[Sampling],
    numbers: Sequence[int],
    masks: Sequence[Int32s | None],
    *,
    threads: int,
) -> Int32s:
    """Return the next token `[n]` of each row of logits `[n, vocab]`, adjusted by `Sampler.adjust`.

    `numbers` counts the tokens that each text got before. `masks`: the allowed tokens of each row as bits, int32
    `[ceil(vocab / 32)]`, lowest bit first, or None. A row's token depends on its own arguments only, and is the one
    that `Sampler` chooses. Raises `ArtifactError` if a row's logits are not finite, and `UsageError` if its mask allows
    no token.
    """
    draws = [
        sampling.draw(number, mask) for sampling, number, mask in zip(samplings, numbers, masks, strict=True)
    ]
    tokens = kernel.choose(logits, draws, threads=threads)
    for row in np.flatnonzero(tokens < 0):
        likeliest(logits[row])  # raises if the logits are at fault, not the mask
        raise UsageError("the grammar allows no token that the model can choose")
    return tokens


def scores(logits: Logits, tokens: Int32s, top: int, *, threads: int) -> kernel.Scores:
    """Return log probabilities of rows of raw logits `[n, vocab]`, in nats.

    These are: those of `tokens` `[n]`; the ids of the `top` most likely tokens `[n, top]`, most likely first (ties:
    lowest id first); and their log probabilities. Raises `ArtifactError` if a row's logits are not finite.
    """
    result = kernel.score(logits, tokens, top, threads=threads)
    if np.isnan(result.scores).any():
        raise ArtifactError(NOT_FINITE)
    return result
