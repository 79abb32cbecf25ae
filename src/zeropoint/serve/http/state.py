"""`Settings` from the command line, and `State`, which all routes of a server share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from starlette.requests import Request

from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.metrics import Metrics
from zeropoint.serve.http.run import Mailbox, Run
from zeropoint.serve.request import Model, Models
from zeropoint.serve.templates import Templates

if TYPE_CHECKING:
    from zeropoint.serve.grammar import Grammars


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and permissions.

    - `api_keys`: clients must send one of these; if empty, no key is needed;
    - `origins`: web origins whose pages may call the server ("*": all);
    - `local`: the server listens for this machine only, so pages of other origins are refused;
    - `max_body_bytes`: largest body of a request; `max_connections`: most open connections;
    - `header_seconds`, `body_seconds`, `send_seconds`: time for a client to send the headers and the body, and to
      take a part of the answer;
    - `keep_alive_seconds`: after this time without a token, a stream sends a comment, so that proxies keep it open.
    """

    api_keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    local: bool = True
    max_body_bytes: int = 16 << 20
    max_connections: int = 2048
    header_seconds: float = 10
    body_seconds: float = 30
    send_seconds: float = 60
    keep_alive_seconds: float = 10


@dataclass(slots=True)
class State:
    """The server's models, settings and running requests. While `draining`, the server refuses new requests."""

    models: Models
    settings: Settings
    templates: Templates
    metrics: Metrics
    grammars: Grammars
    mailbox: Mailbox
    runs: set[Run] = field(default_factory=set)
    draining: bool = False
    started: int = field(default_factory=lambda: int(time.time()))

    def model(self, name: str | None) -> Model:
        """Return the model with this name, or the only model if `name` is None.

        Raises `ApiError`: 400 if the name is missing, 404 if it is unknown.
        """
        by_name = self.models.by_name
        if name is None and len(by_name) == 1:
            return next(iter(by_name.values()))
        if name is None:
            raise ApiError(
                400, f"Missing required parameter: 'model' (one of {', '.join(by_name)}).", param="model",
                code="missing_required_parameter",
            )  # fmt: skip
        if name not in by_name:
            raise ApiError(
                404, f"The model '{name[:100]}' does not exist.", param="model", code="model_not_found"
            )  # fmt: skip
        return by_name[name]

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait at most `seconds` for the running ones to end."""
        self.draining = True
        deadline = time.monotonic() + seconds
        while self.runs and time.monotonic() < deadline:
            await asyncio.sleep(0.05)


def state_of(request: Request) -> State:
    """Return the state of the server that received the request."""
    state: State = request.app.state.zeropoint
    return state
