"""What a loaded model offers: `TokenModel` (token ids), `TextModel` (text), `Measured` (cost), and `Runner`, all three.

Every engine implements `Runner`; one for a GPU (CUDA) would too. Code that needs one part asks for that part only.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Protocol

from zeropoint.runtime.generation import OnToken
from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Message
from zeropoint.values.arrays import Logits, Tokens


class TokenModel(Protocol):
    """A loaded model whose inputs and outputs are token ids. `TextModel` has the tokenizer."""

    name: str
    engine: str
    engine_reason: str
    """Why `auto` did not choose the preferred engine; empty if it did, or if another engine was asked for."""
    vocab_size: int
    stop_tokens: frozenset[int]
    """End-of-sequence ids of the model."""

    def logits(self, tokens: Tokens) -> Logits:
        """Return float32 logits `[T, vocab]` for tokens `[T]`, `[B, T, vocab]` for tokens `[B, T]`."""
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
        """Return the new tokens after `tokens`, a stop token included; greedy without `sampling`.

        `on_token` is called with each new token; a true result ends the generation.
        """
        ...


class TextModel(Protocol):
    """The model's tokenizer and chat template. `zeropoint.runtime.text.Reads` implements them for every engine."""

    @property
    def start_token(self) -> int | None:
        """Return the token to put before a text so that its first token has a prediction: BOS, else EOS, else None."""
        ...

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens added."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a prompt, with a BOS token first if the model was trained with one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens."""
        ...

    def chat_prompt(self, user_text: str) -> list[int]:
        """Return the token ids of one user turn in the chat template; without a template, like `encode_prompt`."""
        ...

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str | None:
        """Return a conversation as text in the model's chat template, or None if the model has no template.

        Raises `UsageError` if the template rejects the conversation.
        """
        ...

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a conversation in the model's chat template, ending where the answer begins.

        Without a template, return the ids of the last turn as a prompt. Raises like `chat_text`.
        """
        ...


class Measured(Protocol):
    """The cost of a loaded model: its bytes, and the time of prefill and decode."""

    weights_bytes: int
    """Bytes of the weights in memory, as packed for the kernels."""
    artifact_bytes: int
    """Bytes of the tensors on disk."""

    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        """Return the seconds to prefill tokens `[B, T]` and the seconds of `new_tokens` greedy decode steps."""
        ...


class Runner(TokenModel, TextModel, Measured, Protocol):
    """A loaded model with everything that the commands ask of it, as `zeropoint.runtime.open_runner` returns it."""
