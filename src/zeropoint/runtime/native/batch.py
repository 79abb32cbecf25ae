"""Batched generation: prefill each prompt alone, then decode all sequences together, one step for the whole batch."""

from __future__ import annotations

from collections.abc import Container, Sequence

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.native.draw import draw
from zeropoint.runtime.native.library import Decoder
from zeropoint.runtime.native.session import read, token_array
from zeropoint.runtime.native.steps import Chunk, forward
from zeropoint.runtime.sampling import Sampler, Sampling
from zeropoint.values.arrays import Floats


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
    buffer = np.empty((len(token_ids), vocab), np.float32)
    for number, ids in enumerate(token_ids):
        read(decoder, cache, ids, sequence=number, threads=threads, out=buffer[number : number + 1])
    active, logits = list(range(len(token_ids))), buffer
    while True:
        tokens = _choose(logits, [samplers[number] for number in active], threads)
        for number, token in zip(active, tokens, strict=True):
            out[number].append(token)
        active = [n for n in active if out[n][-1] not in stop and len(out[n]) < max_new_tokens]
        if not active:
            return out
        chunks = [Chunk(n, len(token_ids[n]) + len(out[n]) - 1, out[n][-1:], 1) for n in active]
        logits = forward(decoder, cache, chunks, threads=threads, out=buffer)


def _choose(logits: Floats, samplers: Sequence[Sampler], threads: int) -> list[int]:
    """Return the next token of each row of logits, which this function may change."""
    for row, sampler in enumerate(samplers):
        logits[row] = sampler.adjust(logits[row])
    samplings, numbers = [s.sampling for s in samplers], [s.count for s in samplers]
    tokens: list[int] = draw(logits, samplings, numbers, [None] * len(samplers), threads=threads).tolist()
    for sampler, token in zip(samplers, tokens, strict=True):
        sampler.add(token)
    return tokens
