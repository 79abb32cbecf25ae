"""Server-sent events: JSON data, comments that keep a quiet stream open, and errors inside a stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from zeropoint.serve.http.errors import ApiError, as_api_error
from zeropoint.serve.http.run import Run

T = TypeVar("T")

#: A comment, which clients skip.
KEEP_ALIVE = ": keep-alive\n\n"
DONE = "data: [DONE]\n\n"


#: Shared by all calls: `json.dumps` with options builds a new encoder each time, which takes longer than the encoding.
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False)


def compact(value: Any) -> str:
    """Return a value as JSON on one line, without spaces."""
    return _ENCODER.encode(value)


def data(value: Any) -> str:
    """Return an event that has only JSON data, as in OpenAI's streams."""
    return f"data: {compact(value)}\n\n"


def named(value: dict[str, Any]) -> str:
    """Return an event whose name is the data's `type`, as in the streams of Anthropic and of OpenAI's Responses API."""
    return f"event: {value['type']}\ndata: {compact(value)}\n\n"


def streaming(run: Run, events: AsyncIterator[str], on_error: Callable[[ApiError], str]) -> Response:
    """Return the response that sends a run's events, and cancels the run if the client leaves.

    `on_error` returns the events that end the stream after an error.
    """

    async def body() -> AsyncIterator[str]:
        async with run:
            try:
                async for event in events:
                    yield event
            except Exception as cause:
                yield on_error(as_api_error(cause))

    headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
    return StreamingResponse(body(), headers=headers, media_type="text/event-stream")


async def unless_left(request: Request, answer: Awaitable[T]) -> T:
    """Return the result of `answer`; cancel it and raise `ApiError` if the client leaves first."""
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
