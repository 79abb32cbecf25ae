"""`Server`: uvicorn's server, which lets running requests end before it shuts down."""

from __future__ import annotations

import asyncio
import resource
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from zeropoint.errors import UsageError, reason
from zeropoint.serve.http.connection import Connection
from zeropoint.serve.http.state import Settings, State

_BACKLOG = 2048


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket. Raises `UsageError` if the address cannot be used."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as cause:
        raise UsageError(
            f"--host {host} is no address of this machine ({reason(cause)}): use 127.0.0.1"
        ) from cause
    out = socket.socket(family, kind, protocol)
    try:
        out.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        out.bind(address)
        out.listen(_BACKLOG)
    except OSError as cause:
        out.close()
        raise UsageError(
            f"cannot listen on {host}, port {port} ({reason(cause)}): choose another with --port"
        ) from cause
    out.setblocking(False)
    return out


def raise_file_limit(connections: int) -> None:
    """Raise the limit of open files so that `connections` fit, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 256
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def configure(app: Starlette, settings: Settings) -> uvicorn.Config:
    """Return uvicorn's configuration: HTTP/1.1 only, with the limits of `settings`."""
    return uvicorn.Config(
        app,
        http=type("Limited", (Connection,), {"settings": settings}),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=1,
    )


class Server(uvicorn.Server):
    """uvicorn's server, which drains (lets running requests end) before it shuts down.

    After the first SIGINT or SIGTERM, the server refuses new requests and waits at most `drain_seconds` for running
    ones. The second signal ends the server at once. The server calls `ready` when it accepts requests.
    """

    def __init__(self, config: uvicorn.Config, drain_seconds: float, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._drain_seconds, self._ready = drain_seconds, ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests, then call `ready`."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if not self.should_exit:
            self._ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, end at the second.

        Unlike uvicorn's method, this one does not raise the signal again at the end.
        """
        if self._loop is None or self._draining is not None:
            self.should_exit = self.force_exit = True
        else:
            self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(self._drained())

    async def _drained(self) -> None:
        """Wait for running requests, stop the engines, then let uvicorn shut down."""
        app: Any = self.config.app
        state: State = app.state.zeropoint
        await state.drain(self._drain_seconds)
        await asyncio.to_thread(state.models.drain, 0)
        self.should_exit = True
