"""`Guard`: refuses requests without an API key or from pages of other origins, and answers uncaught exceptions."""

from __future__ import annotations

import asyncio
import hmac
import secrets
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from zeropoint.serve.http.errors import ApiError, as_api_error, response
from zeropoint.serve.http.state import Settings

#: Paths that need no API key: the chat page, which asks its user for the key, and the health check.
_OPEN = ("/", "/health", "/favicon.ico")
_OPEN_FOLDER = "/page/"


def is_local(host: str) -> bool:
    """Return whether a host is `localhost` or a loopback address. Other names are not, even if they resolve to one."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, such as 127.0.0.1.example.org
        return False


class Guard:
    """ASGI middleware around all routes: checks each request, and adds headers to each response."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._keys = [key.encode() for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False
        request_id = f"req_{secrets.token_hex(12)}"

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(raw=message.setdefault("headers", []))
                headers["x-request-id"] = request_id
                headers["x-content-type-options"] = "nosniff"
            await send(message)

        try:
            self._check(scope)
            await self._app(scope, receive, send_with_headers)
        except (asyncio.CancelledError, OSError):
            raise
        except Exception as cause:
            if started:  # too late to send an error response: the server closes the connection
                raise
            await response(as_api_error(cause), scope["path"])(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> None:
        """Raise `ApiError` (401, 403) if the request is not allowed."""
        headers = Headers(scope=scope)
        self._check_origin(headers)
        path = scope["path"]
        is_open = scope["method"] in ("GET", "HEAD") and (path in _OPEN or path.startswith(_OPEN_FOLDER))
        if self._keys and not is_open:
            self._check_key(headers)

    def _check_origin(self, headers: Headers) -> None:
        """Raise `ApiError` if a page of another origin calls a server that only this machine may use.

        The page's own host may resolve to 127.0.0.1 (DNS rebinding), so only known names of this machine are allowed.
        """
        origin = headers.get("origin")
        allowed = self._settings.origins
        if not self._settings.local or origin is None or "*" in allowed or origin in allowed:
            return
        try:
            host = urlsplit(origin).hostname or ""
        except ValueError:
            host = ""
        if not is_local(host) and not host.endswith(".localhost"):
            raise ApiError(403, "Pages of this origin may not call the server: start it with --cors ORIGIN.")

    def _check_key(self, headers: Headers) -> None:
        """Raise `ApiError` (401) if the request has none of the API keys."""
        kind, _, key = headers.get("authorization", "").partition(" ")
        client_key = (key.strip() if kind.lower() == "bearer" else headers.get("x-api-key", "")).encode()
        # compare all keys in constant time, so that timing tells nothing about them
        matches = [hmac.compare_digest(client_key, each) for each in self._keys]
        if not any(matches):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")
