"""`ApiError`: an error with an HTTP status, shown as OpenAI's or Anthropic's error object.

Messages never hold a traceback or a path of this machine.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zeropoint.errors import BusyError, UsageError, ZeropointError

logger = logging.getLogger("zeropoint.serve")

#: Seconds after which a refused client should try again.
RETRY_SECONDS = 1

INTERNAL = "The server failed to answer this request; its log says why."

_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


class ApiError(Exception):
    """An error response. As in OpenAI's API, `param` names the wrong parameter and `code` is a word for programs."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def openai(self) -> dict[str, Any]:
        """Return OpenAI's error object."""
        kind = _OPENAI_TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def anthropic(self) -> dict[str, Any]:
        """Return Anthropic's error object."""
        kind = _ANTHROPIC_TYPES.get(
            self.status, "api_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"type": "error", "error": {"type": kind, "message": self.message}}

    def headers(self) -> dict[str, str]:
        """Return the headers of the response."""
        out = {"Retry-After": str(RETRY_SECONDS)} if self.status in (429, 503) else {}
        if self.status in (408, 413):
            # the rest of the body may still arrive, and must not be read as the next request
            out["Connection"] = "close"
        return out | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


def response(error: ApiError, path: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """Return the response for an error, in the format of the API that `path` belongs to."""
    body = error.anthropic() if path.startswith("/v1/messages") else error.openai()
    return JSONResponse(body, error.status, {**error.headers(), **(headers or {})})


def as_api_error(cause: BaseException) -> ApiError:
    """Return the error response for an exception. Errors of the server itself are logged, not shown."""
    if isinstance(cause, ApiError):
        return cause
    if isinstance(cause, BusyError):
        return ApiError(429, f"The server is busy: {cause}.", code="rate_limit_exceeded")
    if isinstance(cause, UsageError):
        return ApiError(400, without_paths(str(cause)), code="invalid_value")
    logger.error(
        "a request failed: %s", cause if isinstance(cause, ZeropointError) else repr(cause),
        exc_info=None if isinstance(cause, ZeropointError) else cause,
    )  # fmt: skip
    return ApiError(500, INTERNAL, code="internal_error")


def without_paths(message: str) -> str:
    """Return a message with each absolute path replaced by its last part."""
    return re.sub(r"(?<![\w/])/(?:[^\s/'\",:;()]+/)+([^\s/'\",:;()]+)", r"\1", message)


async def on_error(request: Request, cause: Exception) -> Response:
    """Answer an exception that a route raised; Starlette calls this."""
    path = request.url.path
    if isinstance(cause, HTTPException):
        words = {
            404: f"There is no {request.method} {path[:100]} here.",
            405: f"{request.method} is not allowed here.",
        }
        error = ApiError(cause.status_code, words.get(cause.status_code, str(cause.detail)))
        return response(error, path, dict(cause.headers or {}))
    return response(as_api_error(cause), path)
