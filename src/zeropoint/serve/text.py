"""`Writer` turns a request's events into text: it decodes tokens, finds stop strings, and reports how a text ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from zeropoint.runtime.streaming import TextStream
from zeropoint.serve.request import CANCELLED, FAILED, STOP, Event, Finished, NewToken, PromptRead
from zeropoint.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextOptions:
    """How tokens become text.

    - `stop`: texts that end the answer;
    - `stop_tokens`: ids that end it, which are never shown;
    - `skip_special`: leave special tokens out of the text;
    - `include_stop`: show the stop text that ended the answer.
    """

    stop: tuple[str, ...] = ()
    stop_tokens: frozenset[int] = frozenset()
    skip_special: bool = True
    include_stop: bool = False


@dataclass(slots=True)
class Piece:
    """The text and tokens that some events added to one answer.

    - `tokens`: the new tokens, including a stop token; `shown`: the new tokens without a stop token;
    - `finish`: STOP, LENGTH, CANCELLED or FAILED after the last event, else None;
    - `stopped_by`: the stop text or stop token that ended the answer;
    - `prompt`: set once, when the prompt is read.
    """

    index: int = 0
    text: str = ""
    tokens: list[NewToken] = field(default_factory=list)
    shown: list[NewToken] = field(default_factory=list)
    finish: str | None = None
    stopped_by: str | int | None = None
    error: str = ""
    prompt: PromptRead | None = None


class Writer:
    """Turns the events of one request into text."""

    def __init__(self, tokenizer: Tokenizer, options: TextOptions) -> None:
        self._options = options
        self._skipped = tokenizer.special_ids if options.skip_special else frozenset()
        self._stream = TextStream(tokenizer.decode, options.stop)
        self.finished = False

    def take(self, events: Sequence[Event]) -> Piece:
        """Return what events add to the text. After a stop text, `finished` is true, and further events add nothing."""
        piece = Piece()
        parts: list[str] = []
        for event in events:
            if self.finished:
                break
            if isinstance(event, NewToken):
                parts.append(self._token(event, piece))
            elif isinstance(event, Finished):
                self._end(event, piece, parts)
            else:
                piece.prompt = event
        piece.text = "".join(parts)
        return piece

    def _token(self, token: NewToken, piece: Piece) -> str:
        """Add a token to the piece and return its text."""
        piece.tokens.append(token)
        if token.id in self._options.stop_tokens:
            piece.stopped_by = token.id
            return ""
        piece.shown.append(token)
        if token.id in self._skipped:
            return ""
        text = self._stream.push(token.id)
        return text + self._stopped(piece) if self._stream.stopped else text

    def _stopped(self, piece: Piece) -> str:
        """End the text at a stop text; return the stop text if it must be shown, else nothing."""
        self.finished = True
        piece.finish, piece.stopped_by = STOP, self._stream.stopped_by
        return (self._stream.stopped_by or "") if self._options.include_stop else ""

    def _end(self, event: Finished, piece: Piece, parts: list[str]) -> None:
        """Add the text that was held back, and how the text ended."""
        self.finished = True
        piece.finish, piece.error = event.reason, event.error
        if event.reason not in (CANCELLED, FAILED):
            parts.append(self._stream.finish())
            if self._stream.stopped:
                parts.append(self._stopped(piece))
