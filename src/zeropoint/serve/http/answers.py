"""What the responses of several APIs have in common: ids, counts of tokens, reasons."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request

from zeropoint.serve.http.run import Run
from zeropoint.serve.request import Model
from zeropoint.serve.text import Piece
from zeropoint.serve.tools import CallPart, ToolParser


def usage_of(run: Run) -> dict[str, Any]:
    """Return how many tokens a run read and wrote, as OpenAI counts them."""
    return {
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "total_tokens": run.prompt_tokens + run.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": run.cached_tokens},
    }


def new_id(kind: str, sign: str = "-") -> str:
    """Return a new id that says of what kind of object it is."""
    return f"{kind}{sign}{secrets.token_hex(12)}"


def client_of(request: Request) -> str:
    """Return the name under which a client's requests take turns with those of others: its address."""
    return request.client.host if request.client is not None else ""


def stop_reason(model: Model, piece: Piece) -> str | int | None:
    """Return vLLM's `stop_reason`: the stop text or token that ended the answer; None for the model's own end."""
    stopped = piece.stopped_by
    return None if isinstance(stopped, int) and stopped in model.tokenizer.stop_tokens() else stopped


def split(parser: ToolParser | None, piece: Piece) -> tuple[str, list[CallPart]]:
    """Split a piece's text into what is shown and the parts of tool calls, which a parser finds."""
    if parser is None:
        return piece.text, []
    text, parts = parser.push(piece.text)
    if piece.finish is not None:
        text += parser.finish()
    return text, parts


def join_calls(calls: list[dict[str, Any]], parts: list[CallPart]) -> None:
    """Add the parts of tool calls to whole calls."""
    for part in parts:
        if part.id is not None:
            function = {"name": part.name, "arguments": part.arguments}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            calls[part.index]["function"]["arguments"] += part.arguments
