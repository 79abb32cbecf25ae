"""What every tokenizer of this package does with texts and conversations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from zeropoint.errors import UsageError
from zeropoint.tokenizer.templates import ChatTemplates, Message, last_text

_PROBE = "a"


class Text(ABC):
    """A model's tokenizer with its chat template. `special` holds the special tokens' texts by name (`bos_token`, ...).

    A subclass encodes and decodes; what stands before a text, and conversations, are decided here for all of them.
    """

    special: Mapping[str, str]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of plain text, without special tokens added."""

    @abstractmethod
    def encode_whole(self, text: str) -> list[int]:
        """Return the ids of a whole text, with all special tokens that the tokenizer adds before and after one."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens kept."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """Return the id of a token by its text, None where the vocabulary does not have it."""

    @abstractmethod
    def stop_tokens(self) -> frozenset[int]:
        """Return the ids that end a generated text."""

    @property
    @abstractmethod
    def templates(self) -> ChatTemplates:
        """The model's chat templates, possibly none."""

    @cached_property
    def prefix(self) -> list[int]:
        """The ids that the tokenizer puts before a text: `[BOS]` (Gemma, Llama), or nothing (Qwen, SmolLM2)."""
        return prefix_of(self.encode, self.encode_whole)

    @property
    def start_token(self) -> int | None:
        """The token that the first token of a text is predicted from: BOS, or else EOS, whether or not the tokenizer
        puts it before a text by itself."""
        return next((i for i in map(self._special_id, ("bos_token", "eos_token")) if i is not None), None)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text to go on from: what the tokenizer puts before a text, once, and the text. What it
        puts after a text would end it, and is left out."""
        return with_prefix(self.prefix, self.encode(text))

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str | None:
        """Return a conversation as the model's chat template writes it; None for a model without a template.

        Raises `UsageError` with the template's own complaint, or for a conversation that it cannot write.
        """
        if not messages:
            raise UsageError("a conversation needs at least one message")
        template = self.templates.chosen()
        if template is None:
            return None
        return template.write(messages, self.special, add_generation_prompt=add_generation_prompt)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, ready for the assistant's answer. The template writes all special tokens
        itself; without a template, the last message is a prompt like any other. Raises as `chat_text`."""
        text = self.chat_text(messages)
        return self.encode_prompt(last_text(messages)) if text is None else self.encode(text)

    def _special_id(self, name: str) -> int | None:
        token = self.special.get(name)
        return None if token is None else self.token_id(token)


def prefix_of(encode: Callable[[str], list[int]], encode_whole: Callable[[str], list[int]]) -> list[int]:
    """Return the ids that `encode_whole` puts before a text, and `encode` does not. What it puts after one is left out.

    `encode_whole` may also be a runner's `encode_prompt`.
    """
    plain, whole = encode(_PROBE), encode_whole(_PROBE)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def with_prefix(prefix: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Return `ids` after `prefix`, which a text that writes it out already has."""
    return list(ids) if list(ids[: len(prefix)]) == list(prefix) else [*prefix, *ids]
