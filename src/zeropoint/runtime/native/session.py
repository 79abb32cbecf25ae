"""One sequence of tokens in a decoder's key-value cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.runtime.native.library import Cache, Decoder, Floats, Int32s

#: Tokens of one forward step while a prompt is read: a pass of the decoder. Half of it reads a fifth slower; twice
#: as much gains nothing, and an interrupt waits for the end of a step.
CHUNK = 512

#: A cache has room for a multiple of so many tokens.
GROWTH = 256


class Session:
    """What has been read so far, and how to go on. Not for use by two threads at once."""

    def __init__(self, decoder: Decoder, *, threads: int, cache_type: str = "float16") -> None:
        self.decoder = decoder
        self.threads = threads
        self.tokens: list[int] = []
        self._cache_type = cache_type
        self._cache: Cache | None = None
        self._logits = np.empty((1, decoder.record.config.vocab), np.float32)

    @property
    def cache_bytes(self) -> int:
        return 0 if self._cache is None else self._cache.nbytes

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens in all. What was read stays in the cache, and is not read again.

        Raises `UsageError` beyond the model's positions.
        """
        limit = self.decoder.record.config.max_positions
        if tokens > limit:
            raise UsageError(f"the text has {tokens} tokens, and the model's context ends at {limit}")
        if self._cache is not None and self._cache.tokens >= tokens:
            return
        if self._cache is None:
            self._cache = self.decoder.cache(_room(tokens, limit), type=self._cache_type)
        else:
            # By a quarter at least, since growing copies what is cached; room that is not used takes no memory.
            self._cache.grow(_room(max(tokens, self._cache.tokens * 5 // 4), limit))

    def rewind(self, length: int) -> None:
        """Forget the tokens from `length` on."""
        if self._cache is not None:
            self._cache.truncate(length)
        del self.tokens[length:]

    def restart(self, tokens: Sequence[int]) -> int:
        """Keep the longest common beginning with `tokens` but its last token, whose logits are wanted again;
        its length."""
        pairs = zip(self.tokens, tokens, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(tokens)))
        kept = max(min(common, len(tokens) - 1), 0)
        self.rewind(kept)
        return kept

    def feed(self, tokens: Sequence[int]) -> Floats:
        """Read more tokens, in chunks; the logits `[vocab]` after the last, valid until the next call."""
        self._read(tokens, self._logits)
        logits: Floats = self._logits[0]
        return logits

    def feed_all(self, tokens: Sequence[int]) -> Floats:
        """The same, with the logits `[T, vocab]` after each token."""
        out = np.empty((len(tokens), self.decoder.record.config.vocab), np.float32)
        self._read(tokens, out)
        return out

    def _read(self, tokens: Sequence[int], out: Floats) -> None:
        self.reserve(len(self.tokens) + len(tokens))
        assert self._cache is not None
        ids = token_array(tokens, self.decoder.record.config.vocab)
        read(self.decoder, self._cache, ids, first=len(self.tokens), threads=self.threads, out=out)
        self.tokens += ids.tolist()


def _room(tokens: int, limit: int) -> int:
    """How many tokens a cache is made for that needs room for `tokens` of at most `limit`."""
    return min(-(-tokens // GROWTH) * GROWTH, limit)


def read(
    decoder: Decoder,
    cache: Cache,
    ids: Int32s,
    *,
    first: int = 0,
    sequence: int = 0,
    threads: int,
    out: Floats,
) -> None:
    """Read tokens `[T]` into a sequence at positions from `first` on, in chunks.

    `out` receives the logits of all tokens when it has `T` rows, of the last one when it has one.
    """
    every = len(out) == len(ids)
    for start in range(0, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        end = start + len(part)
        wanted = np.full(len(part), every, np.uint8)
        wanted[-1] = every or end == len(ids)
        decoder.forward(
            cache,
            part,
            np.full(len(part), sequence, np.int32),
            np.arange(first + start, first + end, dtype=np.int32),
            wanted=wanted,
            threads=threads,
            out=out[start:end] if every else out[: wanted[-1]],
        )


def token_array(tokens: Sequence[int] | NDArray[Any], vocab: int) -> Int32s:
    """Token ids `[T]` as int32.

    Raises `UsageError` for none, for what is no list of whole numbers, or for one outside the vocabulary.
    """
    try:
        given = np.asarray(tokens)
    except ValueError:  # lists of several lengths
        given = np.empty(0, object)
    if given.size == 0 and given.ndim == 1 and given.dtype != object:
        raise UsageError("there are no tokens to read: the prompt is empty")
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise UsageError("a prompt is one list of token ids, which are whole numbers")
    if int(given.min()) < 0 or int(given.max()) >= vocab:
        raise UsageError(
            f"the token ids go from {given.min()} to {given.max()}, and the model's vocabulary has {vocab} tokens"
        )
    return given.astype(np.int32)
