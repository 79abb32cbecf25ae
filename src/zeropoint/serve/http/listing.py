"""`GET /v1/models`, `/v1/models/{model}`, `/health`, `/version`, `/metrics`, and the refused `POST /v1/embeddings`."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import zeropoint
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.state import State, state_of
from zeropoint.serve.request import Model


async def models(request: Request) -> Response:
    """Answer `/v1/models` with the list of all models."""
    state = state_of(request)
    listed = [_described(state, each) for each in state.models.by_name.values()]
    # Anthropic's clients read the keys other than `object`
    names = [each["id"] for each in listed]
    return JSONResponse(
        {"object": "list", "data": listed, "has_more": False, "first_id": names[0], "last_id": names[-1]}
    )


async def model(request: Request) -> Response:
    """Answer `/v1/models/{model}` with the description of that model."""
    state = state_of(request)
    return JSONResponse(_described(state, state.model(request.path_params["model"])))


def _described(state: State, each: Model) -> dict[str, Any]:
    """Return the description of a model, with the keys that OpenAI's, Anthropic's and vLLM's clients read."""
    return {
        "id": each.name,
        "object": "model",
        "created": state.started,
        "owned_by": "zeropoint",
        "root": each.name,
        "parent": None,
        "max_model_len": each.max_positions,
        "type": "model",
        "display_name": each.name,
        "loaded": each.loaded,
    }


async def health(request: Request) -> Response:
    """Answer `/health`: 200 if the server accepts requests, 503 while it shuts down."""
    if state_of(request).draining:
        raise ApiError(503, "The server is shutting down.", code="shutting_down")
    return JSONResponse({"status": "ok"})


async def version(request: Request) -> Response:
    """Answer `/version` with the version of zeropoint."""
    return JSONResponse({"version": zeropoint.__version__})


async def metrics(request: Request) -> Response:
    """Answer `/metrics` with all metrics in Prometheus' text format."""
    return Response(state_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def embeddings(request: Request) -> Response:
    """Refuse `/v1/embeddings`: the engine returns tokens, not hidden states."""
    raise ApiError(
        400, "The models of this server generate text, not embeddings.", code="unsupported_operation"
    )
