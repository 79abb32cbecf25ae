"""`Connection`: one client's connection, with time limits and a limit to the number of connections."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from zeropoint.serve.http.errors import RETRY_SECONDS, ApiError
from zeropoint.serve.http.state import Settings


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection, closed if the client is too slow to send headers or to receive the response."""

    settings: ClassVar[Settings]

    _headers_timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.settings.max_connections:
            transport.write(_refusal("503 Service Unavailable", "There are too many connections."))
            transport.close()
            return
        # uvicorn closes idle connections only after their first request
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_headers()

    def _watch_headers(self) -> None:
        """Start the timer while the headers of a request are incomplete; stop the timer when they are complete."""
        waiting = self.conn.their_state is h11.IDLE
        if waiting and self._headers_timer is None:
            self._headers_timer = self.loop.call_later(self.settings.header_seconds, self._too_slow)
        elif not waiting and self._headers_timer is not None:
            self._headers_timer.cancel()
            self._headers_timer = None

    def _too_slow(self) -> None:
        self._headers_timer = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self.transport.write(
                _refusal("408 Request Timeout", "The request's headers did not arrive in time.")
            )
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._send_timer is None:
            self._send_timer = self.loop.call_later(self.settings.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_send_timer()

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._headers_timer, self._send_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        with contextlib.suppress(Exception):
            self.transport.write(_refusal("400 Bad Request", "This is not a valid HTTP request."))
        self.transport.close()


def _refusal(status: str, message: str) -> bytes:
    """Return a whole HTTP response, as bytes, that announces the end of the connection."""
    number = int(status[:3])
    body = json.dumps(ApiError(number, message).openai()).encode()
    retry = f"retry-after: {RETRY_SECONDS}\r\n" if number == 503 else ""
    head = (
        f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{retry}"
        "connection: close\r\n\r\n"
    )
    return head.encode() + body
