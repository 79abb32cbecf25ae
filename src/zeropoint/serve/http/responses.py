"""`POST /v1/responses`: OpenAI's Responses API. Nothing is stored: each request holds the whole conversation."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from zeropoint.serve.http.answers import client_of, new_id
from zeropoint.serve.http.body import read
from zeropoint.serve.http.conversation import (
    CalledFunction,
    ChatMessage,
    Function,
    NamedFunction,
    TextPart,
    Tool,
    ToolCall,
    ToolChoice,
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
    missing,
    one_of,
    option,
    record,
    required,
    string,
    whole,
)
from zeropoint.serve.http.options import (
    MAX_LOGPROBS,
    MODEL,
    SEED,
    STREAM,
    TEMPERATURE,
    TOP_P,
    JsonSchema,
    ResponseFormat,
    SamplingOptions,
)
from zeropoint.serve.http.prompts import chat_submission, in_thread
from zeropoint.serve.http.response_output import Output
from zeropoint.serve.http.run import Run
from zeropoint.serve.http.sse import KEEP_ALIVE, named, respond

#: `include` entry that asks for log-probabilities.
_LOGPROBS = "message.output_text.logprobs"


@dataclass(frozen=True, slots=True, kw_only=True)
class InputItem:
    """One item of the conversation: a message, a function call or its result. Reasoning is ignored."""

    type: str | None = option(
        one_of("message", "function_call", "function_call_output", "reasoning"), "kind of item"
    )
    role: str | None = option(one_of("user", "assistant", "system", "developer"), "of a message: who speaks")
    content: Any = option(either(string(), listing(record(TextPart))), "of a message: text, or parts of text")
    call_id: str | None = option(string(), "of a call and its result: the call's id")
    name: str | None = option(string(), "of a call: the function")
    arguments: str | None = option(string(), "of a call: the arguments as JSON")
    output: Any = option(either(string(), listing(record(TextPart))), "of a result: text, or parts of text")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFormat:
    """Grammar of the answer."""

    type: str = required(one_of("text", "json_object", "json_schema"), "kind of answer")
    name: str | None = option(string(), "with json_schema: name of the schema")
    schema: Mapping[str, Any] | None = option(mapping(anything()), "with json_schema: the JSON Schema")
    strict: bool | None = option(boolean(), "ignored: the answer always follows the schema")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextConfig:
    """The `text` options: the grammar of the answer."""

    format: TextFormat | None = option(record(TextFormat), "grammar of the answer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseTool:
    """A tool that the model may call. Tools of another type than "function" are ignored."""

    type: str = required(string(), "function")
    name: str | None = option(string(), "its name")
    description: str | None = option(string(), "what it does")
    parameters: Mapping[str, Any] | None = option(mapping(anything()), "JSON Schema of its arguments")
    strict: bool | None = option(boolean(), "ignored")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedChoice:
    """A `tool_choice` that names the function that must be called."""

    type: str = required(one_of("function"), "function")
    name: str = required(string(empty=False), "its name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponsesRequest:
    """The body of `/v1/responses`."""

    model: str | None = option(*MODEL)
    input: Any = required(
        either(string(), listing(record(InputItem), 1)), "text, or the items of a conversation"
    )
    instructions: str | None = option(string(), "system message")
    max_output_tokens: int | None = option(whole(1), "most tokens of the answer")
    temperature: float | None = option(*TEMPERATURE)
    top_p: float | None = option(*TOP_P)
    stream: bool | None = option(*STREAM)
    text: TextConfig | None = option(record(TextConfig), "options of the text")
    tools: tuple[ResponseTool, ...] | None = option(
        listing(record(ResponseTool)), "functions that the model may call"
    )
    tool_choice: Any = option(
        either(one_of("none", "auto", "required"), record(NamedChoice)),
        "whether, or which, function is called",
    )
    include: tuple[str, ...] | None = option(
        listing(string()), f'"{_LOGPROBS}": also return log-probabilities'
    )
    top_logprobs: int | None = option(
        whole(0, MAX_LOGPROBS), "number of alternatives with each log-probability"
    )
    parallel_tool_calls: bool | None = option(boolean(), "ignored")
    previous_response_id: str | None = option(string(), "not supported, because nothing is stored")
    background: bool | None = option(boolean(), "not supported")
    store: bool | None = option(boolean(), "ignored: nothing is stored")
    metadata: Mapping[str, Any] | None = option(mapping(anything()), "returned with the response")
    user: str | None = option(string(), "returned with the response")
    seed: int | None = option(*SEED)


async def responses(request: Request) -> Response:
    """Answer `/v1/responses`."""
    body, state, model = await read(ResponsesRequest, request)
    for param in ("previous_response_id", "background"):
        if getattr(body, param):
            raise ApiError(
                400,
                f"{param} is not supported: nothing is stored.",
                param=param,
                code="unsupported_parameter",
            )
    tools = tools_of([_tool(each) for each in body.tools or ()], _choice(body.tool_choice))
    options = SamplingOptions(
        temperature=body.temperature, top_p=body.top_p, seed=body.seed, response_format=_format(body.text)
    )
    logprobs = (body.top_logprobs or 0) if _LOGPROBS in (body.include or ()) or body.top_logprobs else None
    submission = await in_thread(
        chat_submission, state, model, _conversation(body), tools, options, max_tokens=body.max_output_tokens,
        logprobs=logprobs,
    )  # fmt: skip
    run = await Run.start(state, submission, client_of(request))
    sampling = submission.requests[0].sampling
    base = _described(body, model.name, sampling.temperature, sampling.top_p)
    output = Output(model.tokenizer, tools.parser(model), logprobs)
    return await respond(request, run, _Answer(base, run, output), stream=bool(body.stream))


class _Answer:
    """Builds the response to a request, whole or as numbered events."""

    def __init__(self, base: dict[str, Any], run: Run, output: Output) -> None:
        self._base, self._run, self._output = base, run, output
        self._number = 0

    async def whole(self) -> dict[str, Any]:
        """Return the whole response."""
        async for piece in self._run.pieces():
            if piece is not None:
                self._output.add(piece)
        return self._ended()

    async def events(self, seconds: float) -> AsyncIterator[str]:
        """Yield the events of a stream."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event({"type": kind, "response": self._base})
        async for piece in self._run.pieces(tick_seconds=seconds):
            if piece is None:
                yield KEEP_ALIVE
                continue
            for event in self._output.add(piece):
                yield self._event(event)
        response = self._ended()
        yield self._event({"type": f"response.{response['status']}", "response": response})

    def failed(self, error: ApiError) -> str:
        """Return the event that ends the stream after an error."""
        shown = {"code": error.code or "server_error", "message": error.message}
        response = {**self._base, "status": "failed", "error": shown, "output": self._output.items}
        return self._event({"type": "response.failed", "response": response})

    def _ended(self) -> dict[str, Any]:
        """Return the response object after the last token."""
        return {**self._base, **self._output.ended(), "usage": _usage(self._run)}

    def _event(self, event: dict[str, Any]) -> str:
        self._number += 1
        return named({"type": event["type"], "sequence_number": self._number - 1, **event})


def _conversation(body: ResponsesRequest) -> list[dict[str, Any]]:
    """Return the conversation in the form that chat templates take."""
    out = [ChatMessage(role="system", content=body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        out.append(ChatMessage(role="user", content=body.input))
    else:
        for place, item in enumerate(body.input):
            _add_item(out, item, f"input[{place}]")
    return [for_template(each) for each in out]


def _add_item(out: list[ChatMessage], item: InputItem, param: str) -> None:
    """Add an item to the messages. Successive function calls become one message.

    Raises `ApiError` for a message without role.
    """
    if item.type == "function_call":
        call = ToolCall(
            id=item.call_id,
            type="function",
            function=CalledFunction(name=item.name or "", arguments=item.arguments),
        )
        before: tuple[ToolCall, ...] = ()
        if out and out[-1].role == "assistant" and out[-1].tool_calls:
            before = out.pop().tool_calls or ()
        out.append(ChatMessage(role="assistant", content=None, tool_calls=(*before, call)))
    elif item.type == "function_call_output":
        out.append(ChatMessage(role="tool", content=item.output, tool_call_id=item.call_id))
    elif item.type != "reasoning":
        if item.role is None:
            raise missing(f"{param}.role")
        out.append(ChatMessage(role=item.role, content=item.content))


def _tool(tool: ResponseTool) -> Tool:
    """Return a tool in the chat API's form. Raises `ApiError` for a function without name."""
    if tool.type != "function":
        return Tool(type=tool.type)
    if not tool.name:
        raise missing("tools.name", param="tools")
    return Tool(
        type="function",
        function=Function(name=tool.name, description=tool.description, parameters=tool.parameters),
    )


def _choice(choice: Any) -> Any:
    """Return the `tool_choice` in the chat API's form."""
    if isinstance(choice, NamedChoice):
        return ToolChoice(type="function", function=NamedFunction(name=choice.name))
    return choice


def _format(text: TextConfig | None) -> ResponseFormat | None:
    """Return the grammar of the answer in the chat API's form.

    Raises `ApiError` for type json_schema without a schema.
    """
    if text is None or text.format is None:
        return None
    wanted = text.format
    if wanted.type == "json_schema" and wanted.schema is None:
        raise missing("text.format.schema")
    schema = (
        JsonSchema(name=wanted.name or "", schema=wanted.schema) if wanted.type == "json_schema" else None
    )
    return ResponseFormat(type=wanted.type, json_schema=schema)


def _described(body: ResponsesRequest, model: str, temperature: float, top_p: float) -> dict[str, Any]:
    """Return the response object as it is before the first token."""
    wanted = body.text.format if body.text is not None else None
    shown: dict[str, Any] = {"type": "text"}
    if wanted is not None and wanted.type != "text":
        shown = {"type": wanted.type}
        if wanted.type == "json_schema":
            shown |= {"name": wanted.name, "schema": wanted.schema, "strict": bool(wanted.strict)}
    choice = body.tool_choice if body.tool_choice is not None else "auto"
    return {
        "id": new_id("resp", "_"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": dict(body.metadata or {}),
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "prompt_cache_key": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "store": False,
        "temperature": temperature,
        "text": {"format": shown},
        "tool_choice": {"type": "function", "name": choice.name}
        if isinstance(choice, NamedChoice)
        else choice,
        "tools": [
            {
                "type": "function",
                "name": each.name,
                "description": each.description,
                "parameters": dict(each.parameters or {}),
                "strict": bool(each.strict),
            }
            for each in body.tools or ()
            if each.type == "function"
        ],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": top_p,
        "truncation": "disabled",
        "usage": None,
        "user": body.user,
    }


def _usage(run: Run) -> dict[str, Any]:
    """Return the `usage` of a response: its numbers of tokens."""
    return {
        "input_tokens": run.prompt_tokens,
        "input_tokens_details": {"cached_tokens": run.cached_tokens},
        "output_tokens": run.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": run.prompt_tokens + run.completion_tokens,
    }
