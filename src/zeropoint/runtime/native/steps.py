"""One forward step over chunks of several sequences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zeropoint.runtime.native.library import Cache, Decoder
from zeropoint.values.arrays import Floats


@dataclass(frozen=True, slots=True)
class Chunk:
    """Tokens that a step reads into sequence number `sequence`, from position `first` on.

    The step returns the logits after each of the last `wanted` tokens.
    """

    sequence: int
    first: int
    tokens: Sequence[int]
    wanted: int


def forward(decoder: Decoder, cache: Cache, chunks: Sequence[Chunk], *, threads: int, out: Floats) -> Floats:
    """Run one step; return the wanted logits `[rows, vocab]`, chunk after chunk, in the first rows of `out`.

    Raises the errors of `Decoder.forward`; the cache is then unchanged.
    """
    tokens = list[int]()
    for chunk in chunks:
        tokens.extend(chunk.tokens)
    count = len(tokens)
    sequences, positions = np.empty(count, np.int32), np.empty(count, np.int32)
    wanted = np.zeros(count, np.uint8)
    start = 0
    for chunk in chunks:
        end = start + len(chunk.tokens)
        sequences[start:end] = chunk.sequence
        positions[start:end] = range(chunk.first, chunk.first + end - start)
        wanted[end - chunk.wanted : end] = 1
        start = end
    rows = sum(chunk.wanted for chunk in chunks)
    return decoder.forward(
        cache,
        np.array(tokens, np.int32),
        sequences,
        positions,
        wanted=wanted,
        threads=threads,
        out=out[:rows],
    )
