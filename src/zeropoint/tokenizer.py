"""A model folder's tokenizer and chat template, without transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from zeropoint.errors import ArtifactError, UnsupportedError, UsageError
from zeropoint.jsonfile import load_json

if TYPE_CHECKING:
    import jinja2

Message = Mapping[str, Any]
"""One turn of a conversation: `{"role": "user", "content": "..."}`."""

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


class Tokenizer:
    """`tokenizer.json`, and what `tokenizer_config.json` and `chat_template.jinja` add to it.

    Raises `UnsupportedError` for a folder without tokenizer.json, `ArtifactError` for a damaged one.
    """

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Fast

        self.folder = folder
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise UnsupportedError(
                f"{folder} has no tokenizer.json, the only kind that the native engine reads"
            )
        try:
            self._fast = Fast.from_file(str(path))
        except Exception as cause:  # the library raises the bare Exception
            reason = " ".join(str(cause).split())[:200]
            raise ArtifactError(
                f"{path} is not a tokenizer ({reason}): copy it from the model again"
            ) from cause
        self._fast.no_truncation()
        self._fast.no_padding()
        self._settings = _optional_json(folder / "tokenizer_config.json")
        self.special = {
            name: _token_text(value)
            for name in SPECIAL_TOKENS
            if (value := self._settings.get(name)) is not None
        }
        self._template: jinja2.Template | None = None

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without special tokens added."""
        return list(self._fast.encode(text, add_special_tokens=False).ids)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text to go on from, with the special tokens that the tokenizer puts before a text; those it puts
        after one would end it, and are left out."""
        encoding = self._fast.encode(text, add_special_tokens=True)
        ids = list(encoding.ids)
        while ids and encoding.special_tokens_mask[len(ids) - 1]:
            ids.pop()
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens kept."""
        return str(self._fast.decode(list(ids), skip_special_tokens=False))

    def stop_tokens(self) -> frozenset[int]:
        """End-of-sequence ids that the generation config names, or else the config, and the tokenizer's."""
        ids: set[int] = set()
        for name in ("generation_config.json", "config.json"):
            found = _optional_json(self.folder / name).get("eos_token_id")
            if found is not None:
                ids.update(i for i in (found if isinstance(found, list) else [found]) if isinstance(i, int))
                break
        end = self._fast.token_to_id(self.special.get("eos_token", ""))
        return frozenset(ids if end is None else {*ids, end})

    @property
    def has_chat_template(self) -> bool:
        return chat_template(self.folder, self._settings) is not None

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation in the model's chat template, ready for the assistant's answer; of the last
        message's bare text when there is no template. Raises `UsageError` with the template's own complaint."""
        text = chat_template(self.folder, self._settings)
        if text is None:
            return self.encode(str(messages[-1]["content"]))
        if self._template is None:
            self._template = compile_template(text)
        return self.encode(render(self._template, messages, self.special))


@lru_cache(maxsize=4)
def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, shared by all who open the same folder."""
    return Tokenizer(folder)


def chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The chat template of a model folder, whose tokenizer_config.json is `settings`; None when it has none."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def render(template: jinja2.Template, messages: Sequence[Message], special: Mapping[str, str]) -> str:
    """A conversation as the model's template writes it, ready for the answer; `special` tokens by their names.
    Raises `UsageError` with the template's own complaint."""
    from jinja2 import TemplateError

    try:
        return template.render(messages=messages, add_generation_prompt=True, **special)
    except (TemplateError, TypeError, ValueError, KeyError) as cause:
        raise UsageError(f"the model's chat template refuses the conversation: {cause}") from cause


def compile_template(text: str) -> jinja2.Template:
    """A chat template in the environment that transformers gives them: sandboxed, nothing of Python reachable."""
    from jinja2 import TemplateError, nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}` marks the assistant's part for training; here its content is just text."""

        tags = {"generation"}  # noqa: RUF012 -- jinja2's interface

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent, **options)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    try:
        return environment.from_string(text)
    except TemplateError as cause:
        raise ArtifactError(f"the model's chat template is not valid: {cause}") from cause


def _optional_json(path: Path) -> dict[str, Any]:
    return load_json(path) if path.is_file() else {}


def _token_text(value: Any) -> str:
    """A special token is text, or an object that holds it."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value)
