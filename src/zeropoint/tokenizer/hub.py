"""A transformers tokenizer behind this package's interface, for folders that have no tokenizer.json."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zeropoint.tokenizer.folder import stop_ids
from zeropoint.tokenizer.templates import ChatTemplates
from zeropoint.tokenizer.text import Text


class HubTokenizer(Text):
    """A `transformers` tokenizer, fast or slow; the model's `generation` config names further stop tokens."""

    def __init__(self, tokenizer: Any, generation: Any = None) -> None:
        self.tokenizer = tokenizer
        self._generation = generation
        self.special = {name: str(value) for name, value in tokenizer.special_tokens_map.items()}

    @property
    def templates(self) -> ChatTemplates:
        return ChatTemplates.of(getattr(self.tokenizer, "chat_template", None))

    def encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def encode_whole(self, text: str) -> list[int]:
        return list(self.tokenizer(text, verbose=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        return str(
            self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )

    def token_id(self, token: str) -> int | None:
        found: int | None = self.tokenizer.convert_tokens_to_ids(token)
        return found

    def stop_tokens(self) -> frozenset[int]:
        return stop_ids(
            getattr(self._generation, "eos_token_id", None), getattr(self.tokenizer, "eos_token_id", None)
        )


def reader(tokenizer: Any) -> Text:
    """Return a tokenizer of this package as it is, and any other, taken for one of transformers, wrapped."""
    return tokenizer if isinstance(tokenizer, Text) else HubTokenizer(tokenizer)
