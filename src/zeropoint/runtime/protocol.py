"""The `Runner` that every engine offers. No engine is imported here."""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from zeropoint.runtime.generation import OnToken
from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Message

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


class Runner(Protocol):
    """A loaded model that can be measured: logits, generated text, and timed prefill and decode."""

    name: str
    engine: str
    engine_reason: str
    """Why the native engine does not run the model; empty where it does, or was not asked for."""
    vocab_size: int
    weights_bytes: int
    """Bytes the weights hold in memory now, packed for the kernels."""
    artifact_bytes: int
    """Bytes of the tensors on disk."""

    stop_tokens: frozenset[int]
    """End-of-sequence ids of the model."""

    @property
    def start_token(self) -> int | None:
        """The token that the first token of a text is predicted from, BOS or else EOS; None where there is none."""
        ...

    def logits(self, tokens: Tokens) -> Logits:
        """float32 `[T, vocab]` for `[T]` tokens, `[B, T, vocab]` for `[B, T]`."""
        ...

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: OnToken | None = None,
        stop: Container[int] = (),
        sampling: Sampling | None = None,
    ) -> list[int]:
        """Continuation with a key-value cache: the new tokens only, a stop token included; greedy without
        `sampling`. A true result of `on_token` ends it."""
        ...

    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        """Seconds to prefill `[B, T]` tokens, and seconds of `new_tokens` greedy decode steps after it."""
        ...

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text, without special tokens added."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Token ids of a text to go on from: with the beginning-of-text token, where the model was trained with one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens kept."""
        ...

    def chat_prompt(self, user_text: str) -> list[int]:
        """Token ids of one user turn in the model's chat template; as `encode_prompt` without one."""
        ...

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str | None:
        """A conversation as the model's chat template writes it; None without one. Raises `UsageError` when the
        template refuses it."""
        ...

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the answer; without a template, of the
        last turn as a prompt. Raises as `chat_text`."""
        ...
