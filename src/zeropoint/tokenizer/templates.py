"""Chat templates: where a model folder keeps them, and a conversation written by one, as transformers writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zeropoint.errors import ArtifactError, UsageError
from zeropoint.files.json_file import MAX_CONFIG_BYTES, load_json

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "user", "content": "..."}`; content may be parts, `[{"type": "text", ...}]`."""

DEFAULT = "default"

# The first is what templates read; the others are older names of it.
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True, slots=True)
class ChatTemplates:
    """A model's chat templates by name."""

    by_name: Mapping[str, ChatTemplate] = field(default_factory=dict)

    @classmethod
    def of(cls, found: Any) -> ChatTemplates:
        """Return the templates that a `chat_template` entry says: one text, texts by name, or a list of both.

        Raises `ArtifactError` for anything else.
        """
        if found is None:
            return cls()
        named: Any = {DEFAULT: found} if isinstance(found, str) else found
        if isinstance(named, list):
            named = {each.get("name"): each.get("template") for each in named if isinstance(each, dict)}
        if not isinstance(named, dict) or not all(
            isinstance(text, str) for pair in named.items() for text in pair
        ):
            raise ArtifactError("the model's chat_template is neither text nor texts by name: copy it again")
        return cls({name: ChatTemplate(text) for name, text in named.items()})

    def chosen(self) -> ChatTemplate | None:
        """Return the default template, or the only one; None where there are none.

        Raises `UsageError` for several of which none is the default.
        """
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
    """One chat template's text, compiled when it is first used."""

    text: str

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return compile_template(self.text)

    def write(
        self, messages: Sequence[Message], special: Mapping[str, str], *, add_generation_prompt: bool = True
    ) -> str:
        """Return a conversation as this template writes it. Raises `UsageError` with the template's own complaint."""
        return render(self._compiled, messages, special, add_generation_prompt=add_generation_prompt)


def find_templates(folder: Path, settings: Mapping[str, Any]) -> ChatTemplates:
    """Return the chat templates of a model folder whose tokenizer_config.json is `settings`.

    chat_template.jinja and additional_chat_templates/*.jinja come before the settings, as in transformers, and
    chat_template.json, which belongs to models of images and text, after them. Raises `ArtifactError` for files that
    cannot be read.
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
    """Return the text of the chat template that a folder is used with; None where it has none, or several and no
    default one."""
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
) -> str:
    """Return a conversation as a compiled template writes it; `special` tokens by their names.

    Contents made of text parts are handed over as parts, and as plain text to a template that does not read parts.
    Raises `UsageError` with the template's own complaint.
    """
    turns = [_as_transformers(message) for message in messages]
    plain = [_with_plain_content(turn) for turn in turns]
    scope = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt, **special}
    if plain != turns:
        # A template that takes a list for a string writes Python's notation of it, or fails to join them
        try:
            text = template.render(messages=turns, **scope)
        except Exception:
            text = None
        if text is not None and _shows(text, turns, plain):
            return text
    try:
        return template.render(messages=plain, **scope)
    except Exception as cause:  # a template is a program of the model's author: it fails in any way
        said = " ".join(str(cause).split()) or type(cause).__name__
        raise UsageError(f"the model's chat template refuses the conversation: {said}") from cause


def compile_template(text: str) -> jinja2.Template:
    """Return a chat template compiled as transformers does: sandboxed, nothing of Python reachable.

    Raises `ArtifactError` for a template that is not valid.
    """
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's part for training; here its content is just text."""

        tags = {"generation"}  # noqa: RUF012 -- jinja2's interface

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A block of its own, as in transformers: what it sets is not seen after it
            return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

        def _write(self, caller: Any) -> str:
            return str(caller())

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
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
    """`dict(...)` in a template, without the attributes of Python's class."""

    def __call__(self, *pairs: Any, **named: Any) -> dict[Any, Any]:
        return dict(*pairs, **named)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def last_text(messages: Sequence[Message]) -> str:
    """Return the last message's text. Raises `UsageError` for one without text."""
    content = _with_plain_content(_as_transformers(messages[-1])).get("content")
    if not isinstance(content, str):
        raise UsageError("the last message of the conversation has no text")
    return content


def plain_content(content: Any) -> str | None:
    """Return a message's content as text: itself, or the text of its parts, one a line; None for none.

    Raises `UsageError` for content that is not text.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list | tuple):
        raise UsageError(f"a message's content is neither text nor parts of text: {str(content)[:60]}")
    return "\n".join(_part_text(part) for part in content)


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, Mapping) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    raise UsageError(f"a message holds a part of type {kind!r}, and only text is read")


def _as_transformers(message: Message) -> dict[str, Any]:
    """Return a message without its nulls, and with its reasoning under all of the names that templates read."""
    if not isinstance(message, Mapping):
        raise UsageError(f"a message is not an object with role and content: {str(message)[:60]}")
    turn = {key: value for key, value in message.items() if value is not None}
    reasoning = next((turn[name] for name in _REASONING if name in turn), None)
    return turn if reasoning is None else {"thinking": reasoning, **turn, "reasoning_content": reasoning}


def _with_plain_content(turn: dict[str, Any]) -> dict[str, Any]:
    content = turn.get("content")
    return turn if content is None else {**turn, "content": plain_content(content)}


def _shows(text: str, turns: Sequence[Message], plain: Sequence[Message]) -> bool:
    """Whether a conversation's parts came out as their text and not as Python's notation of a list."""
    parted = [turn["content"] for turn, flat in zip(turns, plain, strict=True) if turn != flat]
    return not any(str(content) in text for content in parted) and all(
        _part_text(part).strip() in text for content in parted for part in content
    )


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ArtifactError(
                f"{path} is larger than {MAX_CONFIG_BYTES >> 20} MB: it is not a chat template"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise ArtifactError(f"{path} cannot be read ({cause}): copy it from the model again") from cause
