"""`Reads`: the tokenizer methods that all runners share."""

from __future__ import annotations

from collections.abc import Sequence

from zeropoint.tokenizer import Message, Text


class Reads:
    """`zeropoint.runtime.protocol.TextModel`, for runners with a `tokenizer`."""

    tokenizer: Text

    @property
    def start_token(self) -> int | None:
        return self.tokenizer.start_token

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        return self.tokenizer.encode_prompt(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def chat_prompt(self, user_text: str) -> list[int]:
        return self.chat_tokens([{"role": "user", "content": user_text}])

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str | None:
        return self.tokenizer.chat_text(messages, add_generation_prompt=add_generation_prompt)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        return self.tokenizer.chat(messages)
