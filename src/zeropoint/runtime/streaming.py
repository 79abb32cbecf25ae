"""Streaming of generated text: whole characters only, and no part of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"

#: The most tokens of one character: one for each byte of its UTF-8 form.
_LONGEST_CHARACTER = 4


class TextStream:
    """Converts tokens to text that later tokens cannot change.

    Text is held back while a token ends inside a UTF-8 character, or while the text may be the start of a stop string.
    When a stop string is complete, `stopped` becomes true, `stopped_by` is the stop string, and only the text before
    the stop string is returned.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        # Decoding starts a few tokens back, because a token's text can depend on the token before it.
        self._context = self._shown = 0
        self._pending = ""
        self.stopped = False
        self.stopped_by: str | None = None

    def push(self, token: int) -> str:
        """Add a token; return the text that can be shown now, possibly empty."""
        if self.stopped:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._shown])
        text = self._decode(self._ids[self._context :])
        end = len(self._ids)
        if text.endswith(REPLACEMENT) or len(text) <= len(before):
            if end - self._shown <= _LONGEST_CHARACTER:
                return ""
            # the bytes are not valid UTF-8: hold back only the last tokens, which may begin a character
            end -= _LONGEST_CHARACTER
            whole, text = text, self._decode(self._ids[self._context : end])
            if not whole.startswith(text):
                return ""
        self._context, self._shown = self._shown, end
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """Return the text that is still held back."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._context : self._shown])
        rest = self._decode(self._ids[self._context :])[len(before) :]
        self._shown = len(self._ids)
        out = self._release(rest) + self._pending
        self._pending = ""
        return out

    def _release(self, text: str) -> str:
        """Append `text` to the pending text; return the part that cannot belong to a stop string."""
        text = self._pending + text
        stops_at = [(at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if stops_at:
            first, self.stopped_by = min(stops_at)
            self.stopped, self._pending = True, ""
            return text[:first]
        held = max((overlap(text, stop) for stop in self._stop), default=0)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]


def overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` are a proper prefix of `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
