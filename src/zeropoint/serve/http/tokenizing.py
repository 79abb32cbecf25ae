"""`POST /tokenize` and `POST /detokenize`, with vLLM's fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zeropoint.serve.http.body import read
from zeropoint.serve.http.conversation import ChatMessage, Tool, for_template, tools_of
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.fields import (
    anything,
    boolean,
    listing,
    mapping,
    option,
    record,
    required,
    string,
    token_list,
)
from zeropoint.serve.http.prompts import chat_text, in_thread
from zeropoint.serve.http.scores import token_text
from zeropoint.serve.http.state import State
from zeropoint.serve.request import Model


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizeRequest:
    """The body of `/tokenize`: a prompt or a conversation."""

    model: str | None = option(string(), "name of the model")
    prompt: str | None = option(string(), "text")
    messages: tuple[ChatMessage, ...] | None = option(
        listing(record(ChatMessage), 1), "the conversation, instead of prompt"
    )
    tools: tuple[Tool, ...] | None = option(
        listing(record(Tool)), "with messages: functions that the model may call"
    )
    chat_template_kwargs: Mapping[str, Any] | None = option(
        mapping(anything()), "variables of the chat template"
    )
    add_generation_prompt: bool | None = option(boolean(), "begin the assistant's turn (default: true)")
    add_special_tokens: bool | None = option(
        boolean(), "with prompt: add a prompt's special tokens (default: true)"
    )
    return_token_strs: bool | None = option(boolean(), "also return the tokens' texts")


@dataclass(frozen=True, slots=True, kw_only=True)
class DetokenizeRequest:
    """The body of `/detokenize`."""

    model: str | None = option(string(), "name of the model")
    tokens: tuple[int, ...] = required(token_list(), "token ids")


async def tokenize(request: Request) -> Response:
    """Answer `/tokenize`."""
    body, state, model = await read(TokenizeRequest, request)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(
            400, "Give either prompt or messages.", param="prompt", code="missing_required_parameter"
        )
    ids = await in_thread(_tokens, state, model, body)
    out: dict[str, Any] = {
        "count": len(ids),
        "max_model_len": model.max_positions,
        "tokens": ids,
        "token_strs": None,
    }
    if body.return_token_strs:
        out["token_strs"] = [token_text(model.tokenizer, each) for each in ids]
    return JSONResponse(out)


def _tokens(state: State, model: Model, body: TokenizeRequest) -> list[int]:
    """Return the token ids of the prompt or of the conversation."""
    tokenizer = model.tokenizer
    if body.messages is None:
        words = body.prompt or ""
        return tokenizer.encode(words) if body.add_special_tokens is False else tokenizer.encode_prompt(words)
    rendered = chat_text(
        state,
        model,
        [for_template(each) for each in body.messages],
        tools=tools_of(body.tools or (), None).described,
        options=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
    )
    return tokenizer.encode(rendered)


async def detokenize(request: Request) -> Response:
    """Answer `/detokenize`."""
    body, _, model = await read(DetokenizeRequest, request)
    if max(body.tokens) >= model.vocab_size:
        raise ApiError(
            400, f"Invalid value for 'tokens': the model's largest token id is {model.vocab_size - 1}.", param="tokens",
            code="invalid_value",
        )  # fmt: skip
    return JSONResponse({"prompt": await in_thread(model.tokenizer.decode, body.tokens)})
