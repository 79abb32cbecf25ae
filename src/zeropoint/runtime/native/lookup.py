"""Speculative decoding by prompt lookup: guess that the text repeats itself, check the guess in one step.

Where the last tokens occurred before, what followed then is a draft; the model reads it whole and keeps what it would
have chosen itself, so that greedy text stays the same and repeated passages cost a fraction of their steps
(Leviathan et al., arXiv:2211.17192; the lookup is Saxena's, github.com/apoorvumang/prompt-lookup-decoding).
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from zeropoint.runtime.generation import OnToken
from zeropoint.runtime.native.session import Session
from zeropoint.runtime.sampling import likeliest

#: Tokens that must have occurred before, the longest tried first.
GRAMS = (3, 2)


class Lookup:
    """Where each short run of tokens last ended."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._earlier: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        self._tokens.append(token)
        end = len(self._tokens)
        for size in GRAMS:
            if end >= size:
                gram = tuple(self._tokens[end - size :])
                if gram in self._ends:
                    self._earlier[gram] = self._ends[gram]
                self._ends[gram] = end

    def draft(self, limit: int) -> list[int]:
        """At most `limit` tokens that followed the last tokens when they occurred before; none when they did not."""
        for size in GRAMS:
            at = self._earlier.get(tuple(self._tokens[-size:])) if len(self._tokens) >= size else None
            if at is not None:
                return self._tokens[at : at + limit]
        return []


def generate_with_lookup(
    session: Session,
    tokens: Sequence[int],
    unread: Sequence[int],
    *,
    max_new_tokens: int,
    draft_tokens: int,
    stop: Container[int],
    on_token: OnToken | None,
) -> list[int]:
    """The greedy continuation of `tokens`, of which `unread` are not in the session yet.

    Raises `ArtifactError` where the logits are not finite.
    """
    lookup, out = Lookup(tokens), list[int]()

    def emit(token: int) -> bool:
        """Whether the generation goes on after this token."""
        out.append(token)
        lookup.add(token)
        told = on_token is not None and on_token(token)
        return not told and token not in stop and len(out) < max_new_tokens

    token = int(likeliest(session.feed(unread)))
    while emit(token):
        draft = lookup.draft(min(draft_tokens, max_new_tokens - len(out)))
        read = len(session.tokens)
        chosen = likeliest(session.feed_all([token, *draft])).tolist()
        accepted = 0
        while accepted < len(draft) and draft[accepted] == chosen[accepted]:
            accepted += 1
            if not emit(draft[accepted - 1]):
                session.rewind(read + accepted)
                return out
        session.rewind(read + 1 + accepted)
        token = chosen[accepted]
    return out
