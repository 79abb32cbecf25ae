"""`GET /openapi.json`: the OpenAPI document, made from the dataclasses that validate the requests."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import zeropoint
from zeropoint.serve.http.chat import ChatRequest
from zeropoint.serve.http.completions import CompletionRequest
from zeropoint.serve.http.fields import schema_of
from zeropoint.serve.http.messages import CountRequest, MessagesRequest
from zeropoint.serve.http.responses import ResponsesRequest
from zeropoint.serve.http.state import State, state_of
from zeropoint.serve.http.tokenizing import DetokenizeRequest, TokenizeRequest

_POSTS = {
    "/v1/chat/completions": (ChatRequest, "Continue a conversation (OpenAI)", True),
    "/v1/completions": (CompletionRequest, "Continue a text (OpenAI)", True),
    "/v1/responses": (ResponsesRequest, "Respond to a conversation (OpenAI)", True),
    "/v1/messages": (MessagesRequest, "Continue a conversation (Anthropic)", True),
    "/v1/messages/count_tokens": (CountRequest, "Count the tokens of a conversation (Anthropic)", False),
    "/tokenize": (TokenizeRequest, "Split a text or a conversation into tokens", False),
    "/detokenize": (DetokenizeRequest, "Join tokens to a text", False),
}
_GETS = {
    "/v1/models": ("List the models", "application/json"),
    "/v1/models/{model}": ("Describe a model", "application/json"),
    "/health": ("Return whether the server accepts requests", "application/json"),
    "/version": ("Return the version", "application/json"),
    "/metrics": ("Return all metrics, for Prometheus", "text/plain"),
}
#: The fields of `/tokenize` of which a request has exactly one, with their JSON types.
_EITHER = {"prompt": "string", "messages": "array"}
_ERRORS = {
    "400": "The request is not valid",
    "401": "The API key is missing or wrong",
    "403": "Pages of this origin may not call the server",
    "404": "There is no such model",
    "408": "The request did not arrive in time",
    "413": "The body is too large",
    "415": "The body is not declared as JSON",
    "429": "Too many requests are waiting",
    "500": "The server failed",
    "503": "The server is shutting down",
}


async def openapi(request: Request) -> Response:
    """Answer `/openapi.json`."""
    return JSONResponse(document(state_of(request)))


def document(state: State) -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    names = list(state.models.by_name)
    paths: dict[str, Any] = {}
    for path, (cls, summary, streams) in _POSTS.items():
        schema = schema_of(cls)
        schema["properties"]["model"]["anyOf"][0] = {"type": "string", "enum": names}
        if len(names) > 1:
            schema["properties"]["model"] = {"type": "string", "enum": names}
            schema["required"] = [*schema.get("required", ()), "model"]
        if cls is DetokenizeRequest:
            last = min(each.vocab_size for each in state.models.by_name.values()) - 1
            schema["properties"]["tokens"]["items"] = {"type": "integer", "minimum": 0, "maximum": last}
        if cls is TokenizeRequest:
            schema["oneOf"] = [
                {"required": [name], "properties": {name: {"type": kind}}} for name, kind in _EITHER.items()
            ]
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if streams:
            content["text/event-stream"] = {"schema": {"type": "string"}}
        paths[path] = {
            "post": {
                "summary": summary,
                "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                "responses": _responses(content, anthropic=path.startswith("/v1/messages")),
            }
        }
    for path, (summary, kind) in _GETS.items():
        answer: dict[str, Any] = {"type": "object" if "json" in kind else "string"}
        get: dict[str, Any] = {
            "summary": summary,
            "responses": _responses({kind: {"schema": answer}}),
        }
        if "{model}" in path:
            one = {"type": "string", "enum": names}
            get["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": one}]
        paths[path] = {"get": get}
    out: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "zeropoint serve", "version": zeropoint.__version__},
        "paths": paths,
        "components": {"schemas": {"OpenAIError": _openai_error(), "AnthropicError": _anthropic_error()}},
    }
    if state.settings.api_keys:
        out["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        out["security"] = [{"key": []}]
        paths["/health"]["get"]["security"] = []
    return out


def _responses(content: dict[str, Any], *, anthropic: bool = False) -> dict[str, Any]:
    """Return the responses of an operation: `content` with status 200, and an error object with each error status."""
    reference = {"$ref": f"#/components/schemas/{'AnthropicError' if anthropic else 'OpenAIError'}"}
    errors = {
        status: {"description": about, "content": {"application/json": {"schema": reference}}}
        for status, about in _ERRORS.items()
    }
    return {"200": {"description": "The answer", "content": content}, **errors}


def _openai_error() -> dict[str, Any]:
    text = {"type": ["string", "null"]}
    fields = {"message": {"type": "string"}, "type": {"type": "string"}, "param": text, "code": text}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {"type": "object", "properties": {"error": error}, "required": ["error"]}


def _anthropic_error() -> dict[str, Any]:
    fields = {"message": {"type": "string"}, "type": {"type": "string"}}
    error = {"type": "object", "properties": fields, "required": list(fields)}
    return {
        "type": "object",
        "properties": {"type": {"const": "error"}, "error": error},
        "required": ["type", "error"],
    }
