"""`read`: reads the body of a request within limits of size and time, and finds the model that it names."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, TypeVar

from starlette.requests import ClientDisconnect, Request

from zeropoint.files.json_file import parse_json
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.fields import parse
from zeropoint.serve.http.state import State, state_of
from zeropoint.serve.request import Model


class NamesModel(Protocol):
    """A body that names a model; None is the server's only one."""

    @property
    def model(self) -> str | None: ...


T = TypeVar("T", bound=NamesModel)


async def read(cls: type[T], request: Request) -> tuple[T, State, Model]:
    """Return the body of a request as a `cls`, the server's state, and the model that the body names.

    Raises the errors of `read_json`, `parse` and `State.model`.
    """
    body = parse(cls, await read_json(request))
    state = state_of(request)
    return body, state, state.model(body.model)


async def read_json(request: Request) -> Any:
    """Return the JSON value in a request's body.

    Raises `ApiError`: 400 (no JSON), 408 (too slow), 413 (too large), 415 (not declared as JSON). Requiring the type
    application/json also keeps other sites' pages out: browsers send it to another origin only after a CORS preflight.
    """
    settings = state_of(request).settings
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "The body must be JSON: send the header 'Content-Type: application/json'.")
    data = bytearray()
    try:
        async with asyncio.timeout(settings.body_seconds):
            async for part in request.stream():
                data += part
                if len(data) > settings.max_body_bytes:
                    raise ApiError(413, f"The body is larger than {settings.max_body_bytes} bytes.")
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {settings.body_seconds:g} seconds.") from None
    except ClientDisconnect:
        raise ApiError(400, "The client left before the body was complete.") from None
    try:
        return parse_json(bytes(data))
    except ValueError as cause:  # including text that is not UTF-8
        raise ApiError(400, f"The body is not valid JSON: {cause}.", code="invalid_json") from None
