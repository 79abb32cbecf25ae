"""`Drafter` guesses a request's next tokens, for speculative decoding by prompt lookup.

A step reads the guesses together with the last token. Guesses that equal the model's own choices are right: one step
then yields several tokens. Wrong guesses are removed from the cache. The text stays the same, see
`runtime/native/lookup.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from zeropoint.runtime.native.lookup import Lookup

#: The most guesses of a step.
MAX_GUESSES = 8
#: After a step whose only guess was wrong, this many steps have no guesses.
PAUSE = 8


class Drafter:
    """Guesses the next tokens of one text: more after right guesses, fewer after wrong ones, since each costs time."""

    def __init__(self) -> None:
        self._lookup = Lookup(())
        self._known = 0  # how many tokens of the text the index has
        self._size = 2
        self._pause = 0

    def draft(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """Return at most `most` guesses of what follows `tokens`."""
        for token in tokens[self._known :]:
            self._lookup.add(token)
        self._known = len(tokens)
        if self._pause:
            self._pause -= 1
            return ()
        return tuple(self._lookup.draft(min(self._size, most)))

    def learn(self, guesses: int, right: int) -> None:
        """Note how many guesses of a step were right."""
        if right == guesses:
            self._size = min(2 * self._size, MAX_GUESSES)
        elif right * 2 < guesses or not right:
            self._size = max(self._size // 2, 1)
            self._pause = 0 if right or guesses > 1 else PAUSE
