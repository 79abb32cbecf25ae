"""Drafts from the text so far, against a search through it."""

from __future__ import annotations

import numpy as np

from zeropoint.runtime.native.lookup import GRAMS, Lookup


def searched(tokens: list[int], limit: int) -> list[int]:
    """What followed the last earlier occurrence of the longest matching end."""
    for size in GRAMS:
        gram = tokens[-size:]
        if len(tokens) < size:
            continue
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == gram:
                return tokens[end : end + limit]
    return []


def test_drafts_are_what_followed_before() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        tokens = rng.integers(0, 4, rng.integers(0, 40)).tolist()
        lookup = Lookup(tokens[: len(tokens) // 2])
        for token in tokens[len(tokens) // 2 :]:
            lookup.add(token)
        for limit in (0, 1, 5):
            assert lookup.draft(limit) == searched(tokens, limit)
