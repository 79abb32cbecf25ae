"""Speculative decoding by prompt lookup, for greedy generation.

If the last few tokens occurred earlier in the text, the tokens that followed them there are the draft. One forward step
reads the whole draft, and generation keeps the longest prefix that the model itself would have chosen. The greedy text
stays the same, and repeated passages take fewer steps. Speculative decoding: Leviathan et al., arXiv:2211.17192; prompt
lookup: Saxena, github.com/apoorvumang/prompt-lookup-decoding.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from zeropoint.runtime.generation import OnToken
from zeropoint.runtime.native.session import Session
from zeropoint.runtime.sampling import likeliest

#: Lengths of the n-grams that are looked up, in this order.
GRAMS = (3, 2)


class Lookup:
    """An index from each n-gram of a text to where its last two occurrences end."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._earlier: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.add(token)

    def add(self, token: int) -> None:
        """Append a token to the text."""
        self._tokens.append(token)
        end = len(self._tokens)
        for size in GRAMS:
            if end >= size:
                gram = tuple(self._tokens[end - size :])
                if gram in self._ends:
                    self._earlier[gram] = self._ends[gram]
                self._ends[gram] = end

    def draft(self, limit: int) -> list[int]:
        """Return at most `limit` tokens that followed an earlier occurrence of the last n-gram; [] if there is none."""
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
    """Return the greedy continuation of `tokens`; the session has read all of them but the last ones, `unread`.

    A stop token is included in the result. Raises `ArtifactError` if the logits are not finite.
    """
    lookup, out = Lookup(tokens), list[int]()

    def emit(token: int) -> bool:
        """Append a token to the result; return whether generation goes on."""
        out.append(token)
        lookup.add(token)
        ended = on_token is not None and on_token(token)
        return not ended and token not in stop and len(out) < max_new_tokens

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
