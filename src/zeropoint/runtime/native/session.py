"""`Session`: one sequence of tokens in a key-value cache; `read`: prefill in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.runtime.native.library import Cache, Decoder
from zeropoint.values.arrays import Floats, Int32s

#: Tokens of one forward step during prefill. Half as many are a fifth slower; twice as many gain nothing, and Ctrl-C
#: takes effect only at the end of a step.
CHUNK = 512

#: The capacity of a session's cache is a multiple of this many tokens.
GROWTH = 256


class Session:
    """One sequence: its tokens so far and their key-value cache. Not for use by two threads at once."""

    def __init__(self, decoder: Decoder, *, threads: int, cache_type: str = "float16") -> None:
        self.decoder = decoder
        self.threads = threads
        self.tokens: list[int] = []
        self._cache_type = cache_type
        self._cache: Cache | None = None
        self._logits = np.empty((1, decoder.record.config.vocab), np.float32)

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the key-value cache."""
        return 0 if self._cache is None else self._cache.nbytes

    def reserve(self, tokens: int) -> None:
        """Make room in the cache for `tokens` tokens in all; tokens already read stay cached.

        Raises `UsageError` if `tokens` exceeds the model's context.
        """
        limit = self.decoder.record.config.max_positions
        if tokens > limit:
            raise UsageError(f"the text has {tokens} tokens, and the model's context ends at {limit}")
        if self._cache is not None and self._cache.tokens >= tokens:
            return
        if self._cache is None:
            self._cache = self.decoder.cache(_room(tokens, limit), type=self._cache_type)
        else:
            # At least a quarter more, because growing copies the cache; unused capacity takes no physical memory.
            self._cache.grow(_room(max(tokens, self._cache.tokens * 5 // 4), limit))

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens and remove the rest."""
        if self._cache is not None:
            self._cache.truncate(length)
        del self.tokens[length:]

    def restart(self, tokens: Sequence[int]) -> int:
        """Keep the longest common prefix of the session and `tokens`; return its length.

        At most `len(tokens) - 1` tokens stay, since the last token must be read again to get its logits.
        """
        pairs = zip(self.tokens, tokens, strict=False)
        common = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.tokens), len(tokens)))
        length = max(min(common, len(tokens) - 1), 0)
        self.rewind(length)
        return length

    def feed(self, tokens: Sequence[int]) -> Floats:
        """Read more tokens; return the logits `[vocab]` after the last one, valid until the next call."""
        self._read(tokens, self._logits)
        logits: Floats = self._logits[0]
        return logits

    def feed_all(self, tokens: Sequence[int]) -> Floats:
        """Read more tokens; return the logits `[T, vocab]` after each one."""
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
    """Return the capacity for `tokens` tokens: rounded up to a multiple of `GROWTH`, at most `limit`."""
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
    """Read tokens `[T]` into a sequence of the cache, in chunks; the first token has the position `first`.

    The logits are written to `out`: those of all tokens if `out` has T rows, those of the last token if it has one.
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
    """Return token ids `[T]` as int32.

    Raises `UsageError` if there are none, if they are not one list of integers, or if one is outside the vocabulary.
    """
    try:
        ids = np.asarray(tokens)
    except ValueError:  # lists of several lengths
        ids = np.empty(0, object)
    if ids.size == 0 and ids.ndim == 1 and ids.dtype != object:
        raise UsageError("there are no tokens to read: the prompt is empty")
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UsageError("a prompt is one list of token ids, which are whole numbers")
    if int(ids.min()) < 0 or int(ids.max()) >= vocab:
        raise UsageError(
            f"the token ids go from {ids.min()} to {ids.max()}, and the model's vocabulary has {vocab} tokens"
        )
    return ids.astype(np.int32)
