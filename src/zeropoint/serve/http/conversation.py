"""Messages and tools of a conversation: dataclasses that read them, and the form that chat templates take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zeropoint.serve import grammar
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
    string,
)
from zeropoint.serve.request import Model
from zeropoint.serve.tools import JSON, ToolParser, call_schema, format_of, with_objects


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPart:
    """One part of a message's content: text."""

    type: str = required(
        one_of("text", "input_text", "output_text", "refusal"), "kind of part: only text is read"
    )
    text: str | None = option(string(), "the text")
    refusal: str | None = option(string(), "with type refusal: the text")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledFunction:
    """The function that a tool call names, and its arguments."""

    name: str = required(string(), "its name")
    arguments: str | None = option(string(), "its arguments as JSON")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """A tool call that the assistant made earlier."""

    id: str | None = option(string(), "id of the call, which the tool's result repeats")
    type: str | None = option(string(), "function")
    function: CalledFunction = required(record(CalledFunction), "the function")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: str = required(one_of("system", "developer", "user", "assistant", "tool", "function"), "who speaks")
    content: Any = option(either(string(), listing(record(TextPart))), "text, or parts of text")
    name: str | None = option(string(), "name of the speaker or function")
    reasoning_content: str | None = option(string(), "what an assistant thought before it answered")
    tool_calls: tuple[ToolCall, ...] | None = option(listing(record(ToolCall)), "the assistant's tool calls")
    tool_call_id: str | None = option(string(), "of a tool's result: the id of the call")


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A function that the model may call."""

    name: str = required(string(empty=False), "its name")
    description: str | None = option(string(), "what it does")
    parameters: Mapping[str, Any] | None = option(mapping(anything()), "JSON Schema of its arguments")
    strict: bool | None = option(boolean(), "ignored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool that the model may call. Tools of another type than "function" are ignored."""

    type: str = required(string(), "function")
    function: Function | None = option(record(Function), "the function")


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFunction:
    """The name of the function that must be called."""

    name: str = required(string(empty=False), "its name")


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolChoice:
    """A `tool_choice` that names the function that must be called."""

    type: str = required(one_of("function"), "function")
    function: NamedFunction = required(record(NamedFunction), "the function")


@dataclass(frozen=True, slots=True)
class Tools:
    """The functions that a model may call, in OpenAI's format.

    - `described`: all of them, for the chat template;
    - `forced`: if not empty, the answer must call one of these;
    - `named`: whether the request named the function that must be called;
    - `names`: the names of all functions.
    """

    described: tuple[Mapping[str, Any], ...] = ()
    forced: tuple[Mapping[str, Any], ...] = ()
    named: bool = False
    names: frozenset[str] = field(default_factory=frozenset)

    @property
    def parsed(self) -> bool:
        """Return whether the answer is searched for tool calls."""
        return bool(self.described)

    def grammar(self) -> str | None:
        """Return the grammar of a tool call if the answer must be one, else None."""
        return grammar.of_schema(call_schema(self.forced)) if self.forced else None

    def parser(self, model: Model) -> ToolParser | None:
        """Return a parser that finds the tool calls in one answer; None if the model may call nothing."""
        if not self.described:
            return None
        template = model.tokenizer.templates.chosen(tools=True)
        style = JSON if self.forced else format_of(template.text if template is not None else None)
        return ToolParser(style, self.names)


def tools_of(tools: Sequence[Tool], choice: Any) -> Tools:
    """Return the tools of a request. `choice` is "none", "auto", "required", a `ToolChoice`, or None.

    Raises `ApiError` if the chosen function is not among the tools, or a call is required but there are no tools.
    """
    functions = [
        _described(each.function) for each in tools if each.type == "function" and each.function is not None
    ]
    chosen = choice.function.name if isinstance(choice, ToolChoice) else None
    forced = [each for each in functions if choice == "required" or each["name"] == chosen]
    if (chosen is not None or choice == "required") and not forced:
        what = f"the function '{chosen[:60]}' is not among the tools" if chosen else "there are no tools"
        raise ApiError(
            400, f"Invalid value for 'tool_choice': {what}.", param="tool_choice", code="invalid_value"
        )
    if choice == "none" or not functions:
        return Tools()
    return Tools(
        described=tuple({"type": "function", "function": each} for each in functions),
        forced=tuple(forced),
        named=chosen is not None,
        names=frozenset(each["name"] for each in functions),
    )


def _described(function: Function) -> dict[str, Any]:
    """Return a function in the form that chat templates take."""
    out: dict[str, Any] = {"name": function.name}
    if function.description is not None:
        out["description"] = function.description
    return {**out, "parameters": dict(function.parameters or {"type": "object", "properties": {}})}


def for_template(message: ChatMessage) -> dict[str, Any]:
    """Return a message in the form that chat templates take."""
    role = "system" if message.role == "developer" else message.role
    out: dict[str, Any] = {"role": role, "content": content_of(message.content)}
    for name in ("name", "reasoning_content", "tool_call_id"):
        if getattr(message, name) is not None:
            out[name] = getattr(message, name)
    if message.tool_calls:
        calls = [
            {
                "type": "function",
                "id": each.id,
                "function": {"name": each.function.name, "arguments": each.function.arguments},
            }
            for each in message.tool_calls
        ]
        out["tool_calls"] = with_objects(calls)
        out["content"] = out["content"] or ""
    return out


def content_of(content: Any) -> Any:
    """Return a message's content in the form that chat templates take: a text, or a list of parts of text."""
    if content is None or isinstance(content, str):
        return content or ""
    return [{"type": "text", "text": part.text or part.refusal or ""} for part in content]
