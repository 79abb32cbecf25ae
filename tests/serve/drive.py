"""Helpers that send requests to an engine and collect the events."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from zeropoint.runtime.native.library import Decoder
from zeropoint.serve.engine import Engine, EngineOptions
from zeropoint.serve.request import Event, Finished, NewToken, PromptRead, Request, Ticket

#: Seconds after which an engine is taken to hang.
PATIENCE = 60


@dataclass(slots=True, eq=False)
class Answer:
    """A listener that keeps the events."""

    request: Request
    events: list[Event] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    ticket: Ticket | None = None

    def __call__(self, events: Sequence[Event]) -> None:
        assert not self.ended.is_set(), "an event after the last one"
        self.events += events
        if any(isinstance(event, Finished) for event in events):
            self.ended.set()

    def wait(self) -> Answer:
        assert self.ended.wait(PATIENCE), "the request does not end"
        return self

    @property
    def new_tokens(self) -> list[NewToken]:
        return [event for event in self.events if isinstance(event, NewToken)]

    @property
    def tokens(self) -> list[int]:
        return [event.id for event in self.new_tokens]

    @property
    def prompt_read(self) -> PromptRead:
        """Return the only `PromptRead`. It must be the first event."""
        first, *rest = self.events
        assert isinstance(first, PromptRead)
        assert not any(isinstance(event, PromptRead) for event in rest)
        return first

    @property
    def end(self) -> Finished:
        """Return the only `Finished`. It must be the last event."""
        *rest, last = self.events
        assert isinstance(last, Finished)
        assert not any(isinstance(event, Finished) for event in rest)
        return last


@contextmanager
def engine_of(decoder: Decoder, **options: Any) -> Iterator[Engine]:
    """Yield an engine; drain it at the end."""
    engine = Engine(decoder, EngineOptions(**options))
    try:
        yield engine
    finally:
        engine.drain(0)


def submit(engine: Engine, request: Request, client: str = "") -> Answer:
    answer = Answer(request)
    answer.ticket = engine.submit(request, answer, client=client)
    return answer


def run(engine: Engine, *requests: Request) -> list[Answer]:
    """Submit all requests at once and wait for their ends."""
    answers = [submit(engine, request) for request in requests]
    return [answer.wait() for answer in answers]
