"""What a runner does by its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zeropoint.tokenizer import Message


class Text(Protocol):
    """A model's tokenizer; see `zeropoint.tokenizer.Tokenizer`."""

    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def stop_tokens(self) -> frozenset[int]: ...
    def chat(self, messages: Sequence[Message]) -> list[int]: ...


class Reads:
    """The part of `zeropoint.runtime.Runner` that is the tokenizer's, for runners that have a `Text`."""

    tokenizer: Text

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        return self.tokenizer.encode_prompt(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def chat_prompt(self, user_text: str) -> list[int]:
        return self.chat_tokens([{"role": "user", "content": user_text}])

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        return self.tokenizer.chat(messages)
