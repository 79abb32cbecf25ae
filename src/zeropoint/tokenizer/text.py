"""`Text`: the base class of this package's tokenizers, with prefixes, prompts and chat."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

from zeropoint.errors import UsageError
from zeropoint.tokenizer.templates import ChatTemplates, Message, last_text

_PROBE = "a"


class Text(ABC):
    """A model's tokenizer with its chat templates.

    `special` maps names (`bos_token`, ...) to the texts of special tokens. A subclass implements encoding and decoding.
    """

    special: Mapping[str, str]

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without added special tokens."""

    @abstractmethod
    def encode_whole(self, text: str) -> list[int]:
        """Return the ids of a text, with the special tokens that the tokenizer adds before and after a text."""

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens included."""

    @abstractmethod
    def token_id(self, token: str) -> int | None:
        """Return the id of the token with this text; None if the vocabulary does not have it."""

    @abstractmethod
    def stop_tokens(self) -> frozenset[int]:
        """Return the ids that end a generated text."""

    @property
    @abstractmethod
    def templates(self) -> ChatTemplates:
        """Return the model's chat templates, which may be empty."""

    @cached_property
    def prefix(self) -> list[int]:
        """Return the ids that the tokenizer puts before a text: `[BOS]` (Gemma, Llama), or none (Qwen, SmolLM2)."""
        return prefix_of(self.encode, self.encode_whole)

    @property
    def start_token(self) -> int | None:
        """Return the token from which to predict the first token of a text: BOS, else EOS, else None.

        The tokenizer itself need not put this token before a text.
        """
        return next((i for i in map(self._special_id, ("bos_token", "eos_token")) if i is not None), None)

    def encode_prompt(self, text: str) -> list[int]:
        """Return the ids of a text to continue: the prefix, once, then the text.

        Special tokens that the tokenizer adds after a text are left out, because they would end it.
        """
        return with_prefix(self.prefix, self.encode(text))

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str | None:
        """Return the text that the model's chat template renders for a conversation; None without a template.

        Raises `UsageError` for an empty conversation, or if the template fails.
        """
        if not messages:
            raise UsageError("a conversation needs at least one message")
        template = self.templates.chosen()
        if template is None:
            return None
        return template.write(messages, self.special, add_generation_prompt=add_generation_prompt)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of a conversation, up to the start of the assistant's answer.

        The chat template writes all special tokens itself. Without a template, encodes the last message as a prompt.
        Raises what `chat_text` raises.
        """
        text = self.chat_text(messages)
        return self.encode_prompt(last_text(messages)) if text is None else self.encode(text)

    def _special_id(self, name: str) -> int | None:
        """Return the id of a special token by its name (`bos_token`); None if there is none."""
        token = self.special.get(name)
        return None if token is None else self.token_id(token)


def prefix_of(encode: Callable[[str], list[int]], encode_whole: Callable[[str], list[int]]) -> list[int]:
    """Return the ids that `encode_whole` puts before a text and `encode` does not.

    Ids that `encode_whole` puts after a text are ignored. `encode_whole` may also be a runner's `encode_prompt`.
    """
    plain, whole = encode(_PROBE), encode_whole(_PROBE)
    for start in range(len(whole) - len(plain) + 1):
        if whole[start : start + len(plain)] == plain:
            return whole[:start]
    return []


def with_prefix(prefix: Sequence[int], ids: Sequence[int]) -> list[int]:
    """Return `prefix` followed by `ids`, or `ids` alone if they already start with `prefix`."""
    return list(ids) if list(ids[: len(prefix)]) == list(prefix) else [*prefix, *ids]
