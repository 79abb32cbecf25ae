"""The choice of the next token of each row of logits, and log probabilities.

Every token gets a weight, e^((logit - largest) / temperature), as a whole number of units of 2^-40. The sums of units
are exact in any order, and the random number is a function of the seed and the number of the draw. So a row's token
does not depend on the other rows, the threads or the instruction set. `plain` (numpy, used where the native library is
missing) chooses the same tokens as the C++ kernel.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import SchemeError
from zeropoint.kernels import library
from zeropoint.values.arrays import Floats, Int32s, Logits, Tokens

Units = NDArray[np.int64]

#: Units of the most likely token.
MOST_UNITS = 2**40
#: A row must have fewer tokens than this, so that their units add up to less than 2^63.
_TOKENS = 2**23
#: Mask of the lowest 32 bits.
_WORD = 2**32 - 1


class Draw(NamedTuple):
    """Options for choosing a row's token: `zp_sampling` of native/include/zeropoint.h.

    `seed` and `number` have 64 bits. `mask` holds the allowed tokens as bits, int32 `[ceil(vocab / 32)]`, lowest bit
    first (None: all tokens).
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int
    number: int
    mask: Int32s | None = None


class Scores(NamedTuple):
    """Log probabilities in nats: of one token of each row `[n]`, and the ids and log probabilities of the most likely
    tokens `[n, top]`, most likely first (ties: lowest id first)."""

    scores: Floats
    top_ids: Int32s
    top_scores: Floats


def choose(logits: Logits, draws: Sequence[Draw], *, threads: int = 1) -> Int32s:
    """Return the next token of each row of float32 logits `[n, vocab]`; -1 for a row without a finite largest logit,
    or with a NaN. Raises `SchemeError` if the number of draws, the vocabulary, a mask's shape or an option is wrong."""
    rows, vocab = logits.shape
    if len(draws) != rows:
        raise SchemeError(f"{rows} rows of logits need as many draws, not {len(draws)}")
    if vocab >= _TOKENS:
        raise SchemeError(f"tokens are chosen among fewer than {_TOKENS:,}, not {vocab:,}")
    for draw in draws:
        if draw.mask is not None:
            library.require_shape("the mask", draw.mask, (-(-vocab // 32),))
    if library.missing() is not None:
        return np.array([plain(row, draw) for row, draw in zip(logits, draws, strict=True)], np.int32)
    logits, tokens = np.ascontiguousarray(logits, np.float32), np.empty(rows, np.int32)
    masks = [None if draw.mask is None else np.ascontiguousarray(draw.mask, np.int32) for draw in draws]
    samplings = (library.Sampling * rows)()
    for row, draw, mask in zip(samplings, draws, masks, strict=True):
        row.temperature, row.top_k = draw.temperature, min(draw.top_k, vocab)
        row.top_p, row.min_p = draw.top_p, draw.min_p
        row.seed, row.number = draw.seed, draw.number
        row.mask = None if mask is None else mask.ctypes.data
    status = library.load().zp_sample(
        logits.ctypes.data, vocab, rows, vocab, ctypes.addressof(samplings), tokens.ctypes.data, threads
    )
    library.check(status)
    return tokens


def score(logits: Logits, tokens: Int32s, top: int, *, threads: int) -> Scores:
    """Return the log probabilities of `tokens` `[n]` and of the `top` most likely tokens of logits `[n, vocab]`.

    All are NaN in a row without a finite largest logit, or with a NaN. Raises `SchemeError` if a token id is outside
    the vocabulary, or `top` exceeds its size. Needs the native library.
    """
    rows, vocab = logits.shape
    logits, tokens = np.ascontiguousarray(logits, np.float32), np.ascontiguousarray(tokens, np.int32)
    library.require_shape("tokens", tokens, (rows,))
    if not 0 <= top <= vocab:
        raise SchemeError(f"there are {vocab} tokens, not {top} most likely ones")
    result = Scores(
        np.empty(rows, np.float32), np.empty((rows, top), np.int32), np.empty((rows, top), np.float32)
    )
    status = library.load().zp_score(
        logits.ctypes.data,
        vocab,
        rows,
        vocab,
        tokens.ctypes.data,
        top,
        *(array.ctypes.data for array in result),
        threads,
    )
    library.check(status)
    return result


def plain(logits: Logits, draw: Draw) -> int:
    """Return the next token of one row of logits `[vocab]`, as `choose` does, but in numpy."""
    best = int(logits.argmax())  # argmax returns the place of a NaN, if there is one
    if math.isfinite(logits[best]) and draw.mask is not None:
        allowed = np.unpackbits(draw.mask.view(np.uint8), bitorder="little")[: len(logits)]
        logits = np.where(allowed != 0, logits, np.float32(-np.inf))
        best = int(logits.argmax())
    if not math.isfinite(logits[best]):
        return -1
    if draw.temperature == 0:
        return best
    units = weigh(logits, draw.temperature, draw.top_k)
    ids = likely(units, draw.top_p, draw.min_p)
    cumulative = np.cumsum(units[ids])
    left = random_bits(draw.seed, draw.number) * int(cumulative[-1]) >> 64
    return int(ids[np.searchsorted(cumulative, left, side="right")])


def weigh(logits: Logits, temperature: float, top_k: int) -> Units:
    """Return the units of each token of a row, 0 for tokens that top-k leaves out."""
    divisor, largest = np.float32(temperature), logits.max()
    with np.errstate(over="ignore"):  # overflow gives -inf, which has no units
        scaled = (logits - largest) / divisor
        weights = exponential(scaled)
        if 0 < top_k < len(logits):
            weights[scaled < (np.partition(logits, -top_k)[-top_k] - largest) / divisor] = 0
    return np.rint(weights.astype(np.float64) * MOST_UNITS).astype(np.int64)


def likely(units: Units, top_p: float, min_p: float) -> Tokens:
    """Return the ids of the tokens that top-p and min-p keep, ascending."""
    ids: Tokens = np.flatnonzero(units)
    if top_p < 1:
        order = np.argsort(-units[ids], kind="stable")
        cumulative = np.cumsum(units[ids][order])
        total = int(cumulative[-1])
        target = min(max(math.ceil(top_p * float(total)), 1), total)
        ids = np.sort(ids[order[: int(np.searchsorted(cumulative, target)) + 1]])
    return ids[units[ids] >= math.ceil(min_p * MOST_UNITS)]


def exponential(x: Floats) -> Floats:
    """Return e^x for float32 x <= 0, to two units in the last place.

    The result is 2^n times a Taylor polynomial of r, with x = n ln 2 + r. The operations are those of
    `plain_exponential` in the C++ kernels, in the same order, and each is rounded to float32.
    """
    x = np.maximum(x, np.float32(-88))
    n = np.rint(x * np.float32(1.44269504))
    r = (x + n * np.float32(-0.693359375)) + n * np.float32(2.12194440e-4)
    p = np.full_like(r, np.float32(1) / np.float32(5040))
    for divisor in (720, 120, 24, 6, 2, 1, 1):
        p = p * r + np.float32(1) / np.float32(divisor)
    result: Floats = p * ((n.astype(np.int32) + 127) << 23).view(np.float32)
    return result


def random_bits(seed: int, number: int) -> int:
    """Return 64 random bits, a function of the seed and the number of the draw.

    Philox4x32-10 (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, SC 2011): the seed is its key, the number
    its counter.
    """
    c0, c1, c2, c3 = number & _WORD, number >> 32, 0, 0
    k0, k1 = seed & _WORD, seed >> 32
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & _WORD, a >> 32 ^ c3 ^ k1, a & _WORD
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c1 << 32 | c0
