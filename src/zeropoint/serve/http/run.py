"""`Run`: submits the engine requests of one HTTP request together, and yields their text as it is generated."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zeropoint.serve.http.errors import INTERNAL, ApiError, logger
from zeropoint.serve.http.metrics import Timer
from zeropoint.serve.request import CANCELLED, FAILED, Event, Listener, Model, Request, Ticket
from zeropoint.serve.text import Piece, TextOptions, Writer

if TYPE_CHECKING:
    from zeropoint.serve.http.state import State

_Inbox = asyncio.Queue[tuple[int, Sequence[Event]]]

#: An entry of an inbox, instead of a request's index, which means that no events have come for `tick_seconds`.
_TICK = -1


class Mailbox:
    """Carries events from the engines' threads to the event loop, and wakes the loop once for all events of a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[tuple[_Inbox, int, Sequence[Event]]] = deque()
        self._awake = False

    def listener(self, inbox: _Inbox, index: int) -> Listener:
        """Return a listener that puts the events of request number `index` into `inbox`."""

        def listen(events: Sequence[Event]) -> None:
            self._pending.append((inbox, index, events))
            if not self._awake:
                self._awake = True
                with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody reads the events
                    self._loop.call_soon_threadsafe(self._deliver)

        return listen

    def _deliver(self) -> None:
        """Move all pending events to the inboxes of their runs."""
        self._awake = False  # set first, so that events added from now on wake the loop again
        while self._pending:
            inbox, index, events = self._pending.popleft()
            inbox.put_nowait((index, events))


@dataclass(frozen=True, slots=True)
class Submission:
    """What a `Run` submits: a model, one engine request for each answer, and how the new tokens become text."""

    model: Model
    requests: tuple[Request, ...]
    text: TextOptions


class Run:
    """A submission that runs. Use as `async with await Run.start(...) as run`; leaving the block cancels it."""

    def __init__(self, state: State, submission: Submission) -> None:
        self.submission = submission
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self.cached_tokens = 0
        self._state = state
        self._inbox: _Inbox = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._closed = False
        self._last = time.monotonic()
        self._timer: asyncio.TimerHandle | None = None
        self._prompts: set[tuple[int, ...]] = set()
        self._writers = [Writer(submission.model.tokenizer, submission.text) for _ in submission.requests]
        self._timers = [
            Timer(state.metrics, submission.model.name, len(each.prompt)) for each in submission.requests
        ]

    @classmethod
    async def start(cls, state: State, submission: Submission, client: str) -> Run:
        """Submit the engine requests.

        Raises `ApiError` (503) if the server is shutting down, and what `Model.submit` raises.
        """
        if state.draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        run = cls(state, submission)
        state.runs.add(run)
        try:
            # loading a model takes seconds, and would block all streams on the event loop
            if submission.model.loaded:
                run._submit(client)
            else:
                await asyncio.to_thread(run._submit, client)
        except BaseException:
            run.close()
            raise
        return run

    def _submit(self, client: str) -> None:
        """Submit all engine requests."""
        for index, request in enumerate(self.submission.requests):
            listener = self._state.mailbox.listener(self._inbox, index)
            ticket = self.submission.model.submit(request, listener, client=client)
            self._tickets.append(ticket)
            if self._closed:  # the client left while the model was being loaded
                ticket.cancel()
                return

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel the requests that still run."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._state.runs.discard(self)
        for ticket, writer, timer in zip(self._tickets, self._writers, self._timers, strict=False):
            if not writer.finished:
                ticket.cancel()
                timer.finished("abort")

    async def pieces(self, *, tick_seconds: float | None = None) -> AsyncIterator[Piece | None]:
        """Yield a piece of an answer for each batch of events, until all answers are complete.

        Yields None when no events have come for `tick_seconds`. Raises `ApiError` (500, 503) if the engine fails or
        shuts down.
        """
        unfinished = len(self._writers)
        if tick_seconds is not None:
            self._tick(tick_seconds)
        while unfinished:
            index, events = await self._inbox.get()
            if index == _TICK:
                yield None
                continue
            self._last = time.monotonic()
            writer, timer = self._writers[index], self._timers[index]
            if writer.finished:
                continue
            piece = writer.take(events)
            piece.index = index
            if piece.prompt is not None:
                self._count_prompt(self.submission.requests[index].prompt, piece.prompt.cached_tokens)
            self.completion_tokens += len(piece.tokens)
            timer.tokens(len(piece.tokens))
            if piece.finish is not None:
                unfinished -= 1
                self._tickets[index].cancel()  # the engine does not know that a stop text ended the answer
                timer.finished(piece.finish)
            error = _error_of(piece)
            if error is not None:
                piece.finish = None
            yield piece
            if error is not None:
                raise error

    def _count_prompt(self, prompt: tuple[int, ...], cached: int) -> None:
        """Count the tokens of a prompt once, even if it has several answers, as OpenAI does."""
        if prompt not in self._prompts:
            self._prompts.add(prompt)
            self.prompt_tokens += len(prompt)
            self.cached_tokens += cached

    def _tick(self, seconds: float) -> None:
        """Put a tick into the inbox if no events have come for `seconds`; check again after `seconds`."""
        if self._closed:
            return
        if time.monotonic() - self._last >= seconds:
            self._inbox.put_nowait((_TICK, ()))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick, seconds)


def _error_of(piece: Piece) -> ApiError | None:
    """Return the error of an answer that the engine did not complete, else None."""
    if piece.finish == CANCELLED:
        return ApiError(503, "The server is shutting down.", code="shutting_down")
    if piece.finish == FAILED:
        logger.error("the engine failed: %s", piece.error)
        return ApiError(500, INTERNAL, code="internal_error")
    return None
