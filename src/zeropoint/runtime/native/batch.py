"""Batched generation: prefill each prompt alone, then decode all sequences together, one step for the whole batch."""

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
    """Return the new tokens of each prompt, the same as if each prompt were generated alone.

    A sequence that has ended leaves the batch. Raises `UsageError` if a prompt is empty or does not fit the model's
    context together with `max_new_tokens`.
    """
    vocab, limit = decoder.record.config.vocab, decoder.record.config.max_positions
    token_ids = [token_array(prompt, vocab) for prompt in prompts]
    longest = max(map(len, token_ids), default=0) + max_new_tokens
    if longest > limit:
        raise UsageError(f"the texts take up to {longest} tokens, and the model's context ends at {limit}")
    if not token_ids or max_new_tokens < 1:
        return [[] for _ in token_ids]
    room = sum(len(ids) + max_new_tokens for ids in token_ids)
    cache = decoder.cache(room, sequences=len(token_ids), type=cache_type)
    samplers = [Sampler(sampling, ids.tolist()) for ids in token_ids]
    out: list[list[int]] = [[] for _ in token_ids]
    logits = np.empty((len(token_ids), vocab), np.float32)
    for number, ids in enumerate(token_ids):
        read(decoder, cache, ids, sequence=number, threads=threads, out=logits[number : number + 1])
    active = list(range(len(token_ids)))
    while active:
        for row, number in enumerate(active):
            out[number].append(samplers[number](logits[row]))
        active = [n for n in active if out[n][-1] not in stop and len(out[n]) < max_new_tokens]
        if active:
            logits = decoder.forward(
                cache,
                np.array([out[n][-1] for n in active], np.int32),
                np.array(active, np.int32),
                np.array([len(token_ids[n]) + len(out[n]) - 1 for n in active], np.int32),
                threads=threads,
            )
    return out
