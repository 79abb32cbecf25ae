"""Chat templates: finding them in a model folder, and rendering conversations as transformers does."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zeropoint.errors import ArtifactError, UsageError, reason
from zeropoint.files.json_file import MAX_CONFIG_BYTES, load_json

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
"""One turn of a conversation, `{"role": "user", "content": "..."}`. A list of parts is also valid as content:
`[{"type": "text", "text": "..."}]`."""

DEFAULT, TOOL_USE = "default", "tool_use"

# Names of a message's reasoning: current templates read the first, older ones the others
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's chat templates by name."""

    by_name: Mapping[str, ChatTemplate] = field(default_factory=dict)

    @classmethod
    def of(cls, entry: Any) -> ChatTemplates:
        """Return the templates in a `chat_template` entry.

        The entry is None, one text, an object of texts by name, or a list of objects with `name` and `template`. Raises
        `ArtifactError` for anything else.
        """
        if entry is None:
            return cls()
        named: Any = {DEFAULT: entry} if isinstance(entry, str) else entry
        if isinstance(named, list):
            named = {each.get("name"): each.get("template") for each in named if isinstance(each, dict)}
        if not isinstance(named, dict) or not all(
            isinstance(text, str) for pair in named.items() for text in pair
        ):
            raise ArtifactError("the model's chat_template is neither text nor texts by name: copy it again")
        return cls({name: ChatTemplate(text) for name, text in named.items()})

    def chosen(self, *, tools: bool = False) -> ChatTemplate | None:
        """Return the default template, else the only one; None if there are none.

        With `tools`, return the template named "tool_use" if there is one, as transformers does. Raises `UsageError`
        if there are several and no default.
        """
        if tools and TOOL_USE in self.by_name:
            return self.by_name[TOOL_USE]
        if DEFAULT in self.by_name or not self.by_name:
            return self.by_name.get(DEFAULT)
        if len(self.by_name) > 1:
            raise UsageError(
                f"the model has several chat templates and no default one ({', '.join(sorted(self.by_name))}): "
                'name one of them "default" in its tokenizer_config.json'
            )
        return next(iter(self.by_name.values()))


@dataclass(frozen=True)
class ChatTemplate:
    """One chat template, compiled on first use."""

    text: str

    @cached_property
    def _compiled(self) -> jinja2.Template:
        """Return the compiled template."""
        return compile_template(self.text)

    def write(
        self, messages: Sequence[Message], special: Mapping[str, str], *, add_generation_prompt: bool = True
    ) -> str:
        """Return the text that this template renders for a conversation. Raises `UsageError` if the template fails."""
        return render(self._compiled, messages, special, add_generation_prompt=add_generation_prompt)


def find_templates(folder: Path, settings: Mapping[str, Any]) -> ChatTemplates:
    """Return the chat templates of a model folder whose tokenizer_config.json is `settings`.

    The first source with a template counts, as in transformers: chat_template.jinja and
    additional_chat_templates/*.jinja; `settings`; chat_template.json (of models for images and text). Raises
    `ArtifactError` for files that cannot be read.
    """
    files = {DEFAULT: folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    named = {name: _read(path) for name, path in files.items() if path.is_file()}
    if named:
        return ChatTemplates.of(named)
    if settings.get("chat_template") is not None:
        return ChatTemplates.of(settings["chat_template"])
    processor = folder / "chat_template.json"
    return ChatTemplates.of(load_json(processor).get("chat_template") if processor.is_file() else None)


def chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """Return the text of a folder's default or only chat template; None if there is none."""
    try:
        chosen = find_templates(folder, settings).chosen()
    except UsageError:
        return None
    return None if chosen is None else chosen.text


def render(
    template: jinja2.Template,
    messages: Sequence[Message],
    special: Mapping[str, str],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> str:
    """Return the text that a compiled template renders for a conversation.

    `special` maps names (`bos_token`) to the texts of special tokens. `tools` are functions that the model may call, as
    OpenAI's API describes them. `options` are further variables of the template (`enable_thinking`). A content that
    is a list of text parts is passed as a list first, and as plain text if the template does not support lists.
    Raises `UsageError` if the template fails.
    """
    turns = [_as_transformers(message) for message in messages]
    plain = [_with_plain_content(turn) for turn in turns]
    scope: dict[str, Any] = {"documents": None, "add_generation_prompt": add_generation_prompt, **special}
    scope |= {**(options or {}), "tools": list(tools) if tools else None}
    scope.pop("messages", None)
    if plain != turns:
        # A template without support for lists renders a list as Python would print it, or fails
        try:
            text = template.render(messages=turns, **scope)
        except Exception:
            text = None
        if text is not None and _shows(text, turns, plain):
            return text
    try:
        return template.render(messages=plain, **scope)
    except Exception as cause:  # a template is a program and may raise anything
        raise UsageError(
            f"the model's chat template refuses the conversation: {reason(cause, 500)}"
        ) from cause


def compile_template(text: str) -> jinja2.Template:
    """Return a chat template, compiled in a sandbox without access to Python, as in transformers.

    Raises `ArtifactError` for an invalid template.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag `{% generation %}`, which marks the assistant's text for training. Here it renders its content."""

        tags = {"generation"}  # noqa: RUF012 -- jinja2's interface

        def parse(self, parser: Parser) -> nodes.Node:
            """Parse the tag's content as a block."""
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A block with a scope of its own, as in transformers: variables set inside are not visible after it
            return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

        def _write(self, caller: Any) -> str:
            """Return the content's text."""
            return str(caller())

    def raise_exception(message: str) -> NoReturn:
        """Raise the error that a template asks for."""
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """Return a value as JSON. Unlike jinja2's filter, does not escape HTML characters."""
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["dict"] = _Dict()
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    try:
        return environment.from_string(text)
    except (TemplateError, RecursionError) as cause:
        raise ArtifactError(f"the model's chat template is not valid: {cause}") from cause


class _Dict:
    """The function `dict` in a template, without the other attributes of Python's class."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """Return `dict.fromkeys(keys, value)`."""
        return dict.fromkeys(keys, value)


def last_text(messages: Sequence[Message]) -> str:
    """Return the last message's text. Raises `UsageError` if it has no text."""
    content = _with_plain_content(_as_transformers(messages[-1])).get("content")
    if not isinstance(content, str):
        raise UsageError("the last message of the conversation has no text")
    return content


def plain_content(content: Any) -> str | None:
    """Return a message's content as text: a text unchanged, a list of parts joined by newlines, None for None.

    Raises `UsageError` for content that is not text.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UsageError(f"a message's content is neither text nor parts of text: {str(content)[:60]}")
    return "\n".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    """Return the text of one part of a content. Raises `UsageError` for a part of another type."""
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UsageError(f"a message holds a part of type {kind!r}, and only text is read")


def _as_transformers(message: Message) -> dict[str, Any]:
    """Return a message without None values, and with its reasoning under the names `thinking` and
    `reasoning_content`, which templates read."""
    if not isinstance(message, Mapping):
        raise UsageError(f"a message is not an object with role and content: {str(message)[:60]}")
    turn = {key: value for key, value in message.items() if value is not None}
    reasoning = next((turn[name] for name in _REASONING if name in turn), None)
    return turn if reasoning is None else {"thinking": reasoning, **turn, "reasoning_content": reasoning}


def _with_plain_content(turn: dict[str, Any]) -> dict[str, Any]:
    """Return a message with its content as plain text."""
    content = turn.get("content")
    return turn if content is None else {**turn, "content": plain_content(content)}


def _shows(text: str, turns: Sequence[Message], plain: Sequence[Message]) -> bool:
    """Return whether a rendered text holds the text of every part, and no list as Python would print it."""
    lists = [turn["content"] for turn, flat in zip(turns, plain, strict=True) if turn != flat]
    return not any(str(content) in text for content in lists) and all(
        _part_text(part).strip() in text for content in lists for part in content
    )


def _read(path: Path) -> str:
    """Return the text of a template file. Raises `ArtifactError` if it is too large or cannot be read."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ArtifactError(
                f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MB: it is not a chat template"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise ArtifactError(
            f"{path} cannot be read ({reason(cause)}): copy it from the model again"
        ) from cause
