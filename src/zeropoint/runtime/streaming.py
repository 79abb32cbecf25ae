"""Text as it is generated: whole characters only, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"


class TextStream:
    """Turns tokens into text that can be shown at once.

    A token may end in the middle of a UTF-8 character, which waits for the next one. Text that may turn out to be
    the beginning of a stop string waits too; once a stop string is complete, `stopped` is true and what comes
    before it is all there is.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = [text for text in stop if text]
        self._ids: list[int] = []
        # Decoding begins a few tokens back: what a token's text is can depend on the one before it.
        self._context = self._shown = 0
        self._pending = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that this token completes."""
        if self.stopped:
            return ""
        self._ids.append(token)
        before = self._decode(self._ids[self._context : self._shown])
        text = self._decode(self._ids[self._context :])
        if text.endswith(REPLACEMENT) or len(text) <= len(before):
            return ""
        self._context, self._shown = self._shown, len(self._ids)
        return self._release(text[len(before) :])

    def finish(self) -> str:
        """What was still waiting."""
        if self.stopped:
            return ""
        before = self._decode(self._ids[self._context : self._shown])
        rest = self._decode(self._ids[self._context :])[len(before) :]
        self._shown = len(self._ids)
        out = self._release(rest) + self._pending
        self._pending = ""
        return out

    def _release(self, text: str) -> str:
        text = self._pending + text
        found = [at for at in (text.find(stop) for stop in self._stop) if at >= 0]
        if found:
            self.stopped, self._pending = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._pending = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that begin `stop`."""
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
