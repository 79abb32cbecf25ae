"""`POST /v1/chat/completions`: OpenAI's chat API."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from zeropoint.serve.http.answers import client_of, new_id, split, stop_reason, usage_of
from zeropoint.serve.http.body import read
from zeropoint.serve.http.conversation import (
    ChatMessage,
    Tool,
    ToolChoice,
    Tools,
    for_template,
    tools_of,
)
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.fields import (
    anything,
    boolean,
    either,
    listing,
    mapping,
    one_of,
    option,
    record,
    required,
    whole,
)
from zeropoint.serve.http.options import MAX_LOGPROBS, SamplingOptions
from zeropoint.serve.http.prompts import chat_submission, in_thread
from zeropoint.serve.http.run import Run
from zeropoint.serve.http.scores import chat_logprobs
from zeropoint.serve.http.sse import DONE, KEEP_ALIVE, data, respond
from zeropoint.serve.request import STOP, Model, NewToken
from zeropoint.serve.text import Piece
from zeropoint.serve.tools import CallPart, ToolParser


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(SamplingOptions):
    """The body of `/v1/chat/completions`."""

    messages: tuple[ChatMessage, ...] = required(listing(record(ChatMessage), 1), "the conversation so far")
    max_completion_tokens: int | None = option(
        whole(1), "most tokens of the answer; default: what the context holds"
    )
    max_tokens: int | None = option(whole(1), "older name of max_completion_tokens")
    logprobs: bool | None = option(boolean(), "return the log-probability of each token")
    top_logprobs: int | None = option(
        whole(0, MAX_LOGPROBS), "with logprobs: number of alternatives of each token"
    )
    tools: tuple[Tool, ...] | None = option(listing(record(Tool)), "functions that the model may call")
    tool_choice: Any = option(
        either(one_of("none", "auto", "required"), record(ToolChoice)),
        "whether, or which, function is called",
    )
    parallel_tool_calls: bool | None = option(boolean(), "ignored")
    chat_template_kwargs: Mapping[str, Any] | None = option(
        mapping(anything()), "variables of the chat template"
    )
    add_generation_prompt: bool | None = option(boolean(), "begin the assistant's turn (default: true)")


async def chat_completions(request: Request) -> Response:
    """Answer `/v1/chat/completions`."""
    body, state, model = await read(ChatRequest, request)
    if body.top_logprobs and not body.logprobs:
        raise ApiError(400, "top_logprobs needs logprobs: true.", param="top_logprobs", code="invalid_value")
    tools = tools_of(body.tools or (), body.tool_choice)
    submission = await in_thread(
        chat_submission,
        state,
        model,
        [for_template(each) for each in body.messages],
        tools,
        body,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        template_options=body.chat_template_kwargs,
        add_generation_prompt=body.add_generation_prompt is not False,
    )
    run = await Run.start(state, submission, client_of(request))
    answer = _Answer(body, model, run, tools)
    return await respond(request, run, answer, stream=bool(body.stream))


class _Answer:
    """Builds the response to a request, whole or in chunks."""

    def __init__(self, body: ChatRequest, model: Model, run: Run, tools: Tools) -> None:
        self._body, self._model, self._run, self._tools = body, model, run, tools
        self._base = {"id": new_id("chatcmpl"), "created": int(time.time()), "model": model.name}
        self._parsers: list[ToolParser | None] = [tools.parser(model) for _ in range(body.answers)]

    async def whole(self) -> dict[str, Any]:
        """Return the whole response."""
        texts = [""] * self._body.answers
        calls: list[list[dict[str, Any]]] = [[] for _ in texts]
        choices: list[dict[str, Any]] = [{"index": index} for index in range(len(texts))]
        logprobs: list[list[NewToken]] = [[] for _ in texts]
        async for piece in self._run.pieces():
            if piece is None:
                continue
            index, choice = piece.index, choices[piece.index]
            text, parts = split(self._parsers[piece.index], piece)
            texts[index] += text
            logprobs[index] += piece.shown
            _join_calls(calls[index], parts)
            if self._body.return_token_ids:
                choice.setdefault("token_ids", []).extend(token.id for token in piece.tokens)
            if piece.finish is not None:
                choice["finish_reason"] = self._finish(piece, bool(calls[index]))
                choice["stop_reason"] = stop_reason(self._model, piece)
        for index, choice in enumerate(choices):
            message: dict[str, Any] = {
                "role": "assistant",
                "content": texts[index] or (None if calls[index] else ""),
            }
            message |= {"refusal": None, "annotations": []}
            if calls[index]:
                message["tool_calls"] = calls[index]
            choice["message"] = message
            choice["logprobs"] = self._logprobs(logprobs[index])
        out = {**self._base, "object": "chat.completion", "choices": choices, "usage": usage_of(self._run)}
        if self._body.return_token_ids:
            out["prompt_token_ids"] = list(self._run.submission.requests[0].prompt)
        return out

    async def events(self, seconds: float) -> AsyncIterator[str]:
        """Yield the events of a stream: for each choice, the role, then the text, then the finish reason."""
        begun, calls = [False] * self._body.answers, [False] * self._body.answers
        async for piece in self._run.pieces(tick_seconds=seconds):
            if piece is None:
                yield KEEP_ALIVE
                continue
            index = piece.index
            if not begun[index] and (piece.tokens or piece.finish):
                begun[index] = True
                yield self._chunk(index, {"role": "assistant", "content": ""}, first=True)
            text, parts = split(self._parsers[piece.index], piece)
            calls[index] = calls[index] or bool(parts)
            logprobs = self._logprobs(piece.shown)
            ids = [token.id for token in piece.tokens] if self._body.return_token_ids else []
            if text or ids or (logprobs and not parts):
                yield self._chunk(index, {"content": text}, logprobs=logprobs, ids=ids)
            if parts:
                delta = {"tool_calls": [_as_delta(part) for part in parts]}
                yield self._chunk(index, delta, logprobs=None if text or ids else logprobs)
            if piece.finish is not None:
                finish = self._finish(piece, calls[index])
                yield self._chunk(index, {}, finish=finish, stop=stop_reason(self._model, piece))
        if self._body.include_usage:
            yield data(
                {**self._base, "object": "chat.completion.chunk", "choices": [], "usage": usage_of(self._run)}
            )
        yield DONE

    def failed(self, error: ApiError) -> str:
        """Return the events that end a stream after an error."""
        return data(error.openai()) + DONE

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        first: bool = False,
        logprobs: Any = None,
        ids: list[int] | None = None,
        finish: str | None = None,
        stop: str | int | None = None,
    ) -> str:
        """Return one event of a stream, with one choice."""
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        if finish is not None:
            choice["stop_reason"] = stop
        if ids:
            choice["token_ids"] = ids
        chunk = {**self._base, "object": "chat.completion.chunk", "choices": [choice]}
        if first and self._body.return_token_ids:
            chunk["prompt_token_ids"] = list(self._run.submission.requests[index].prompt)
        return data(chunk)

    def _finish(self, piece: Piece, called: bool) -> str | None:
        """Return OpenAI's `finish_reason` of an answer; `called`: the answer has tool calls."""
        return "tool_calls" if called and piece.finish == STOP and not self._tools.named else piece.finish

    def _logprobs(self, tokens: list[NewToken]) -> dict[str, Any] | None:
        if not self._body.logprobs or not tokens:
            return None
        content = chat_logprobs(self._model.tokenizer, tokens, self._body.top_logprobs or 0)
        return {"content": content, "refusal": None}


def _as_delta(part: CallPart) -> dict[str, Any]:
    """Return a part of a tool call as a delta of OpenAI's streams."""
    if part.id is None:
        return {"index": part.index, "function": {"arguments": part.arguments}}
    function = {"name": part.name, "arguments": part.arguments}
    return {"index": part.index, "id": part.id, "type": "function", "function": function}


def _join_calls(calls: list[dict[str, Any]], parts: list[CallPart]) -> None:
    """Append streamed parts of tool calls to `calls`: a part with an id begins a call, others extend its arguments."""
    for part in parts:
        if part.id is not None:
            function = {"name": part.name, "arguments": part.arguments}
            calls.append({"id": part.id, "type": "function", "function": function})
        else:
            calls[part.index]["function"]["arguments"] += part.arguments
