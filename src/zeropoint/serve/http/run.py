"""`Run`: the engine requests of one HTTP request, submitted together, and their text as it comes."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anyio import to_thread

from zeropoint.serve.http.errors import INTERNAL, ApiError, logger
from zeropoint.serve.http.metrics import Timer
from zeropoint.serve.request import CANCELLED, FAILED, Event, Listener, Model, Request, Ticket
from zeropoint.serve.text import Piece, TextOptions, Writer

if TYPE_CHECKING:
    from zeropoint.serve.http.state import State

_Inbox = asyncio.Queue[tuple[int, Sequence[Event]]]

#: In an inbox, instead of the index of a request: a while has passed.
_TICK = -1


class Mailbox:
    """Carries events from the engines' threads to asyncio: one wake-up for all events of a step."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: deque[tuple[_Inbox, int, Sequence[Event]]] = deque()
        self._awake = False

    def listener(self, inbox: _Inbox, index: int) -> Listener:
        """Return a listener that puts a request's events, with its index, into an inbox."""

        def listen(events: Sequence[Event]) -> None:
            self._pending.append((inbox, index, events))
            if not self._awake:
                self._awake = True
                with contextlib.suppress(RuntimeError):  # the server has ended, and nobody reads
                    self._loop.call_soon_threadsafe(self._deliver)

        return listen

    def _deliver(self) -> None:
        """Put the events into their inboxes."""
        self._awake = False  # before the deque is emptied, so that what is added now wakes us again
        while self._pending:
            inbox, index, events = self._pending.popleft()
            inbox.put_nowait((index, events))


@dataclass(frozen=True, slots=True)
class Job:
    """What to run: a model, one engine request for each answer, and how their tokens become text."""

    model: Model
    requests: tuple[Request, ...]
    text: TextOptions


class Run:
    """A job that runs. Use as `async with await Run.start(...) as run`: leaving it cancels what still runs."""

    def __init__(self, state: State, job: Job) -> None:
        self.job = job
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
        self._writers = [Writer(job.model.tokenizer, job.text) for _ in job.requests]
        self._timers = [Timer(state.metrics, job.model.name, len(each.prompt)) for each in job.requests]

    @classmethod
    async def start(cls, state: State, job: Job, client: str) -> Run:
        """Submit a job. Raises `ApiError`: 400, 429 (busy), 503 (shutting down)."""
        if state.draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down")
        run = cls(state, job)
        state.runs.add(run)
        try:
            # loading takes seconds, and would stop all streams if done here
            if job.model.loaded:
                run._submit(client)
            else:
                await to_thread.run_sync(run._submit, client)
        except BaseException:
            run.close()
            raise
        return run

    def _submit(self, client: str) -> None:
        """Submit all requests of the job."""
        for index, request in enumerate(self.job.requests):
            listener = self._state.mailbox.listener(self._inbox, index)
            ticket = self.job.model.submit(request, listener, client=client)
            self._tickets.append(ticket)
            if self._closed:  # the client left while the model was being loaded
                ticket.cancel()
                return

    async def __aenter__(self) -> Run:
        return self

    async def __aexit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what still runs."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._state.runs.discard(self)
        for ticket, writer, timer in zip(self._tickets, self._writers, self._timers, strict=False):
            if not writer.finished:
                ticket.cancel()
                timer.finished("abort")

    async def pieces(self, *, tick_seconds: float | None = None) -> AsyncIterator[Piece | None]:
        """Yield what each batch of events adds to an answer, until all answers are complete.

        Yields None when nothing has come for `tick_seconds`. Raises `ApiError` (500, 503) if the engine fails or
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
                self._count_prompt(self.job.requests[index].prompt, piece.prompt.cached_tokens)
            self.completion_tokens += len(piece.tokens)
            timer.tokens(len(piece.tokens))
            if piece.finish is not None:
                unfinished -= 1
                self._tickets[index].cancel()  # ends it after a stop text; otherwise it has ended already
                timer.finished(piece.finish)
            error = _error_of(piece)
            if error is not None:
                piece.finish = None
            yield piece
            if error is not None:
                raise error

    def _count_prompt(self, prompt: tuple[int, ...], cached: int) -> None:
        """Count a prompt's tokens: once for all answers to it, as OpenAI does."""
        if prompt not in self._prompts:
            self._prompts.add(prompt)
            self.prompt_tokens += len(prompt)
            self.cached_tokens += cached

    def _tick(self, seconds: float) -> None:
        """Put a tick into the inbox if nothing has come for `seconds`, and look again later."""
        if self._closed:
            return
        if time.monotonic() - self._last >= seconds:
            self._inbox.put_nowait((_TICK, ()))
        self._timer = asyncio.get_running_loop().call_later(seconds, self._tick, seconds)


def _error_of(piece: Piece) -> ApiError | None:
    """Return the error if an answer ended because the engine failed or shuts down."""
    if piece.finish == CANCELLED:
        return ApiError(503, "The server is shutting down.", code="shutting_down")
    if piece.finish == FAILED:
        logger.error("the engine failed: %s", piece.error)
        return ApiError(500, INTERNAL, code="internal_error")
    return None
