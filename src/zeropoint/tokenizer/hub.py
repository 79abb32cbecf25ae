"""`HubTokenizer`: a wrapper that gives a transformers tokenizer this package's interface.

It serves folders without tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zeropoint.tokenizer.folder import stop_ids
from zeropoint.tokenizer.templates import ChatTemplates
from zeropoint.tokenizer.text import Text


class HubTokenizer(Text):
    """A `transformers` tokenizer, fast or slow. `generation` is the generation config, which may add stop tokens."""

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
        number: int | None = self.tokenizer.convert_tokens_to_ids(token)
        return number

    def stop_tokens(self) -> frozenset[int]:
        return stop_ids(
            getattr(self._generation, "eos_token_id", None), getattr(self.tokenizer, "eos_token_id", None)
        )


def reader(tokenizer: Any) -> Text:
    """Return `tokenizer` if it is a `Text`, else wrapped as a transformers tokenizer."""
    return tokenizer if isinstance(tokenizer, Text) else HubTokenizer(tokenizer)
