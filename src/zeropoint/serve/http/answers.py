"""Helpers that build the responses of several APIs: ids, token counts, stop reasons."""

from __future__ import annotations

import secrets
from typing import Any

from starlette.requests import Request

from zeropoint.serve.http.run import Run
from zeropoint.serve.request import Model
from zeropoint.serve.text import Piece
from zeropoint.serve.tools import CallPart, ToolParser


def usage_of(run: Run) -> dict[str, Any]:
    """Return OpenAI's `usage` object: the numbers of prompt tokens and new tokens of a run."""
    return {
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "total_tokens": run.prompt_tokens + run.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": run.cached_tokens},
    }


def new_id(kind: str, sign: str = "-") -> str:
    """Return a new random id that starts with `kind` and `sign`, like "chatcmpl-..."."""
    return f"{kind}{sign}{secrets.token_hex(12)}"


def client_of(request: Request) -> str:
    """Return the client's address. The engine lets clients with different addresses take turns."""
    return request.client.host if request.client is not None else ""


def stop_reason(model: Model, piece: Piece) -> str | int | None:
    """Return vLLM's `stop_reason`: the stop text or token that ended the answer; None for the model's stop tokens."""
    stopped = piece.stopped_by
    return None if isinstance(stopped, int) and stopped in model.tokenizer.stop_tokens() else stopped


def split(parser: ToolParser | None, piece: Piece) -> tuple[str, list[CallPart]]:
    """Return the text that a piece shows, and the parts of tool calls that the parser finds in the piece."""
    if parser is None:
        return piece.text, []
    text, parts = parser.push(piece.text)
    if piece.finish is not None:
        text += parser.finish()
    return text, parts
