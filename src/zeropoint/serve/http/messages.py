"""`POST /v1/messages` and `/v1/messages/count_tokens`: Anthropic's chat API."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from zeropoint.serve.http.answers import client_of, new_id, split
from zeropoint.serve.http.body import read
from zeropoint.serve.http.conversation import (
    CalledFunction,
    ChatMessage,
    Function,
    NamedFunction,
    Tool,
    ToolCall,
    ToolChoice,
    Tools,
    for_template,
    tools_of,
)
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.fields import (
    anything,
    either,
    listing,
    mapping,
    one_of,
    option,
    record,
    required,
    string,
    whole,
)
from zeropoint.serve.http.options import (
    MAX_STOPS,
    MODEL,
    STREAM,
    TEMPERATURE,
    TOP_K,
    TOP_P,
    SamplingOptions,
)
from zeropoint.serve.http.prompts import chat_submission, chat_text, in_thread
from zeropoint.serve.http.run import Run
from zeropoint.serve.http.sse import named, respond
from zeropoint.serve.http.state import State
from zeropoint.serve.request import LENGTH, Model
from zeropoint.serve.text import Piece
from zeropoint.serve.tools import CallPart


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One content block of a message."""

    type: str = required(
        one_of("text", "tool_use", "tool_result", "thinking", "redacted_thinking"),
        "kind of block: images are not supported",
    )
    text: str | None = option(string(), "the text")
    thinking: str | None = option(string(), "what the assistant thought")
    id: str | None = option(string(), "of a tool_use: its id")
    name: str | None = option(string(), "of a tool_use: the tool")
    input: Mapping[str, Any] | None = option(mapping(anything()), "of a tool_use: the arguments")
    tool_use_id: str | None = option(string(), "of a tool_result: the id of the tool_use")
    content: Any = option(
        either(string(), listing(mapping(anything()))), "of a tool_result: text, or blocks of text"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One message of a conversation."""

    role: str = required(one_of("user", "assistant", "system"), "who speaks")
    content: Any = required(either(string(), listing(record(Block))), "text, or blocks")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesTool:
    """A tool that the model may use. Anthropic's own tools, which have another type than "custom", are ignored."""

    name: str = required(string(empty=False), "its name")
    type: str | None = option(string(), "custom")
    description: str | None = option(string(), "what it does")
    input_schema: Mapping[str, Any] | None = option(mapping(anything()), "JSON Schema of its input")


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesToolChoice:
    """Whether, or which, tool is used."""

    type: str = required(one_of("auto", "any", "tool", "none"), "whether a tool is used")
    name: str | None = option(string(), "with type tool: its name")


@dataclass(frozen=True, slots=True, kw_only=True)
class CountRequest:
    """The body of `/v1/messages/count_tokens`."""

    model: str | None = option(*MODEL)
    messages: tuple[Turn, ...] = required(listing(record(Turn), 1), "the conversation so far")
    system: Any = option(either(string(), listing(record(Block))), "system message")
    tools: tuple[MessagesTool, ...] | None = option(
        listing(record(MessagesTool)), "tools that the model may use"
    )
    tool_choice: MessagesToolChoice | None = option(
        record(MessagesToolChoice), "whether, or which, tool is used"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagesRequest(CountRequest):
    """The body of `/v1/messages`."""

    max_tokens: int = required(whole(1), "most tokens of the answer")
    stop_sequences: tuple[str, ...] | None = option(
        listing(string(), 0, MAX_STOPS), "texts that end the answer"
    )
    stream: bool | None = option(*STREAM)
    temperature: float | None = option(*TEMPERATURE)
    top_p: float | None = option(*TOP_P)
    top_k: int | None = option(*TOP_K)


async def messages(request: Request) -> Response:
    """Answer `/v1/messages`."""
    body, state, model = await read(MessagesRequest, request)
    tools = _tools(body)
    options = SamplingOptions(
        temperature=body.temperature, top_p=body.top_p, top_k=body.top_k, stop=body.stop_sequences
    )
    submission = await in_thread(
        chat_submission, state, model, _conversation(body), tools, options, max_tokens=body.max_tokens
    )
    run = await Run.start(state, submission, client_of(request))
    answer = _Answer(model, run, tools)
    return await respond(request, run, answer, stream=bool(body.stream))


async def count_tokens(request: Request) -> Response:
    """Answer `/v1/messages/count_tokens`."""
    body, state, model = await read(CountRequest, request)
    return JSONResponse({"input_tokens": await in_thread(_count, state, model, body)})


def _count(state: State, model: Model, body: CountRequest) -> int:
    """Return the number of tokens in the prompt that a conversation becomes."""
    text = chat_text(state, model, _conversation(body), tools=_tools(body).described)
    return len(model.tokenizer.encode(text))


def _tools(body: CountRequest) -> Tools:
    """Return the tools of a request."""
    tools = [
        Tool(
            type="function",
            function=Function(name=each.name, description=each.description, parameters=each.input_schema),
        )
        for each in body.tools or ()
        if each.type in (None, "custom")
    ]
    choice: Any = None
    if body.tool_choice is not None:
        choice = {"auto": "auto", "any": "required", "none": "none"}.get(body.tool_choice.type)
        if choice is None:
            choice = ToolChoice(type="function", function=NamedFunction(name=body.tool_choice.name or ""))
    return tools_of(tools, choice)


def _conversation(body: CountRequest) -> list[dict[str, Any]]:
    """Return the conversation in the form that chat templates take."""
    out = []
    if body.system:
        out.append(ChatMessage(role="system", content=_text(body.system)))
    for turn in body.messages:
        if isinstance(turn.content, str):
            out.append(ChatMessage(role=turn.role, content=turn.content))
        else:
            out += _of_blocks(turn.role, turn.content)
    return [for_template(each) for each in out]


def _of_blocks(role: str, blocks: Sequence[Block]) -> list[ChatMessage]:
    """Return one turn as chat messages: one for each tool result, then one for the rest of the blocks."""
    out = [
        ChatMessage(role="tool", content=_result(each.content), tool_call_id=each.tool_use_id)
        for each in blocks
        if each.type == "tool_result"
    ]
    calls = tuple(
        ToolCall(
            id=each.id,
            type="function",
            function=CalledFunction(name=each.name or "", arguments=_json(each.input)),
        )
        for each in blocks
        if each.type == "tool_use"
    )
    text = _text([each for each in blocks if each.type == "text"])
    thought = "".join(each.thinking or "" for each in blocks if each.type == "thinking")
    if text or calls or thought or not out:
        out.append(
            ChatMessage(role=role, content=text, tool_calls=calls or None, reasoning_content=thought or None)
        )
    return out


def _text(content: str | Sequence[Block]) -> str:
    return content if isinstance(content, str) else "\n".join(each.text or "" for each in content)


def _result(content: Any) -> str:
    """Return the result of a tool as text. Raises `ApiError` for other content, such as an image."""
    if content is None or isinstance(content, str):
        return content or ""
    for part in content:
        if part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise ApiError(
                400, "The content of a tool_result must be text.", param="messages", code="invalid_value"
            )
    return "\n".join(part["text"] for part in content)


def _json(value: Any) -> str:
    return json.dumps(dict(value or {}), ensure_ascii=False)


class _Answer:
    """Builds the response to a request, whole or as events."""

    def __init__(self, model: Model, run: Run, tools: Tools) -> None:
        self._run = run
        self._parser = tools.parser(model)
        self._message: dict[str, Any] = {
            "id": new_id("msg", "_"),
            "type": "message",
            "role": "assistant",
            "model": model.name,
            "container": None,
            "stop_details": None,
        }
        self._blocks: list[dict[str, Any]] = []
        self._inputs: list[str] = []
        self._open = False

    async def whole(self) -> dict[str, Any]:
        """Return the whole response."""
        last = Piece()
        async for piece in self._run.pieces():
            if piece is not None:
                last = piece
                list(self._add(piece))
        return {**self._message, "content": self._blocks, **self._end(last), "usage": self._usage()}

    async def events(self, seconds: float) -> AsyncIterator[str]:
        """Yield the events of a stream."""
        begun = False
        async for piece in self._run.pieces(tick_seconds=seconds):
            if piece is None:
                yield named({"type": "ping"})
                continue
            if not begun:
                begun = True
                start = {**self._message, "content": [], "stop_reason": None, "stop_sequence": None}
                yield named({"type": "message_start", "message": {**start, "usage": self._usage()}})
            for event in self._add(piece):
                yield named(event)
            if piece.finish is not None:
                for event in self._close():
                    yield named(event)
                yield named({"type": "message_delta", "delta": self._end(piece), "usage": self._usage()})
        yield named({"type": "message_stop"})

    def failed(self, error: ApiError) -> str:
        """Return the event that ends a stream after an error."""
        return named(error.anthropic())

    def _add(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece of the answer to the content; return the events that announce it."""
        text, parts = split(self._parser, piece)
        out = self._add_text(text) if text else []
        for part in parts:
            out += self._add_call(part)
        if piece.finish is not None:
            for block, arguments in zip(self._blocks, self._inputs, strict=True):
                if block["type"] == "tool_use":
                    block["input"] = _parsed(arguments)
        return out

    def _add_text(self, text: str) -> list[dict[str, Any]]:
        out = []
        if not self._open or self._blocks[-1]["type"] != "text":
            if self._blocks and not text.strip():
                return []  # leave out white space between two calls
            out = self._start({"type": "text", "text": "", "citations": None})
        self._blocks[-1]["text"] += text
        return [*out, self._delta({"type": "text_delta", "text": text})]

    def _add_call(self, part: CallPart) -> list[dict[str, Any]]:
        out = []
        if part.id is not None:
            number = part.id.removeprefix("call_")
            call: dict[str, Any] = {
                "type": "tool_use",
                "id": f"toolu_{number}",
                "name": part.name,
                "input": {},
            }
            out = self._start({**call, "caller": {"type": "direct"}})
        if part.arguments:
            self._inputs[-1] += part.arguments
            out.append(self._delta({"type": "input_json_delta", "partial_json": part.arguments}))
        return out

    def _start(self, block: dict[str, Any]) -> list[dict[str, Any]]:
        """End the open content block, begin the next one, and return the events of both."""
        out = self._close()
        self._blocks.append(block)
        self._inputs.append("")
        self._open = True
        return [
            *out,
            {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": dict(block)},
        ]

    def _delta(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta}

    def _close(self) -> list[dict[str, Any]]:
        if not self._open:
            return []
        self._open = False
        return [{"type": "content_block_stop", "index": len(self._blocks) - 1}]

    def _end(self, piece: Piece) -> dict[str, Any]:
        """Return Anthropic's `stop_reason` and `stop_sequence` of the answer."""
        stopped = piece.stopped_by if isinstance(piece.stopped_by, str) else None
        called = any(block["type"] == "tool_use" for block in self._blocks)
        reason = "max_tokens" if piece.finish == LENGTH else "tool_use" if called else "end_turn"
        return {"stop_reason": "stop_sequence" if stopped is not None else reason, "stop_sequence": stopped}

    def _usage(self) -> dict[str, Any]:
        """Return Anthropic's `usage`, where `input_tokens` leaves out tokens found in the prefix cache."""
        cached = self._run.cached_tokens
        return {
            "input_tokens": self._run.prompt_tokens - cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": self._run.completion_tokens,
            "cache_creation": None,
            "inference_geo": None,
            "output_tokens_details": None,
            "server_tool_use": None,
            "service_tier": "standard",
        }


def _parsed(text: str) -> Any:
    """Return the arguments of a tool call; an empty object if the answer was cut off inside them."""
    try:
        return json.loads(text or "{}")
    except ValueError:
        return {}
