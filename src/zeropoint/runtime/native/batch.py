"""Many texts at once: each prompt is read alone, then all go on together, one step for the whole batch."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.session import read, token_array
from zeropoint.runtime.sampling import Sampler, Sampling


def generate_batch(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Container[int] = (),
    sampling: Sampling,
    cache_type: str = "float16",
    threads: int,
) -> list[list[int]]:
    """The continuation of each prompt, as alone: a sequence that has ended leaves the batch.

    Raises `UsageError` for an empty prompt, or one that does not fit the model's context.
    """
    vocab, limit = decoder.record.config.vocab, decoder.record.config.max_positions
    given = [token_array(prompt, vocab) for prompt in prompts]
    longest = max(map(len, given), default=0) + max_new_tokens
    if longest > limit:
        raise UsageError(f"the texts take up to {longest} tokens, and the model's context ends at {limit}")
    if not given or max_new_tokens < 1:
        return [[] for _ in given]
    room = sum(len(ids) + max_new_tokens for ids in given)
    cache = decoder.cache(room, sequences=len(given), type=cache_type)
    samplers = [Sampler(sampling, ids.tolist()) for ids in given]
    out: list[list[int]] = [[] for _ in given]
    logits = np.empty((len(given), vocab), np.float32)
    for number, ids in enumerate(given):
        read(decoder, cache, ids, sequence=number, threads=threads, out=logits[number : number + 1])
    active = list(range(len(given)))
    while active:
        for row, number in enumerate(active):
            out[number].append(samplers[number](logits[row]))
        active = [n for n in active if out[n][-1] not in stop and len(out[n]) < max_new_tokens]
        if active:
            logits = decoder.forward(
                cache,
                np.array([out[n][-1] for n in active], np.int32),
                np.array(active, np.int32),
                np.array([len(given[n]) + len(out[n]) - 1 for n in active], np.int32),
                threads=threads,
            )
    return out
