"""`respond` sends an answer in one piece or as server-sent events, and cancels the run if the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable
from typing import Any, Protocol, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from zeropoint.serve.http.errors import ApiError, as_api_error
from zeropoint.serve.http.run import Run
from zeropoint.serve.http.state import state_of

T = TypeVar("T")

#: A comment, which clients skip.
KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"

#: Headers of a streamed response: neither caches nor nginx keep parts of it back.
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


#: Shared by all calls: `json.dumps` with options builds a new encoder each time, which takes longer than the encoding.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)


def _compact(value: Any) -> str:
    """Return a value as JSON on one line, without spaces."""
    return _ENCODER.encode(value)


def data(value: Any) -> str:
    """Return an event that has only JSON data, as in OpenAI's streams."""
    return f"data: {_compact(value)}\n\n"


def named(value: dict[str, Any]) -> str:
    """Return an event whose name is the data's `type`, as in the streams of Anthropic and of OpenAI's Responses API."""
    return f"event: {value['type']}\ndata: {_compact(value)}\n\n"


class Answer(Protocol):
    """Builds the response to one request, in the format of its API."""

    async def whole(self) -> dict[str, Any]:
        """Return the whole response."""
        ...

    def events(self, seconds: float) -> AsyncIterator[str]:
        """Yield the events of a stream; after `seconds` without a token, an event or comment that clients ignore."""
        ...

    def failed(self, error: ApiError) -> str:
        """Return the events that end a stream after an error."""
        ...


async def respond(request: Request, run: Run, answer: Answer, *, stream: bool) -> Response:
    """Return the response to a request: as events with `stream`, else in one piece.

    The run is cancelled if the client leaves. Raises `ApiError` if the run fails before the response begins.
    """
    if stream:
        return _streaming(run, answer, state_of(request).settings.keep_alive_seconds)
    async with run:
        return JSONResponse(await _unless_left(request, answer.whole()))


def _streaming(run: Run, answer: Answer, seconds: float) -> Response:
    """Return the response that sends the events of an answer."""

    async def body() -> AsyncIterator[str]:
        async with run:
            try:
                async for event in answer.events(seconds):
                    yield event
            except Exception as cause:
                yield answer.failed(as_api_error(cause))

    return StreamingResponse(body(), headers=STREAM_HEADERS, media_type="text/event-stream")


async def _unless_left(request: Request, answer: Awaitable[T]) -> T:
    """Return the result of `answer`; cancel `answer` and raise `ApiError` if the client leaves first."""
    task = asyncio.ensure_future(answer)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((task, left), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(400, "The client has left.")
        return task.result()
    finally:
        for each in (task, left):
            each.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await asyncio.gather(task, left, return_exceptions=True)


async def _left(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
