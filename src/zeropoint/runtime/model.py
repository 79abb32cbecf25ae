"""`Model`: a runner with text in and text out, as returned by `zeropoint.load`."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.sampling import Sampling
from zeropoint.runtime.streaming import TextStream
from zeropoint.tokenizer import Message
from zeropoint.values.arrays import Logits, Tokens

DEFAULT_NEW_TOKENS = 256


class Model:
    """A loaded artifact or checkpoint.

    >>> model = zeropoint.load("smollm2-int4")  # doctest: +SKIP
    >>> print(model.generate("The capital of France is", max_new_tokens=8))  # doctest: +SKIP

    Generation stops before the first of the strings `stop`. The other keyword arguments are those of `Sampling`:
    `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`. The default is greedy decoding. All methods
    raise `UsageError` if an option is unknown or out of range, or if the prompt is empty.
    """

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def __repr__(self) -> str:
        return f"<zeropoint.Model {self.runner.name}, {self.runner.engine} engine>"

    def generate(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> str:
        """Return the continuation of a text (or of token ids), without the prompt."""
        parts: list[str] = []
        self._run(self._tokens(prompt), parts.append, max_new_tokens, stop, sampling)
        return "".join(parts)

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> Iterator[str]:
        """Yield the continuation piece by piece as it is generated. Leaving the loop early ends the generation."""
        tokens = self._tokens(prompt)
        return _stream(lambda show: self._run(tokens, show, max_new_tokens, stop, sampling))

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        stop: str | Sequence[str] = (),
        **sampling: Any,
    ) -> str:
        """Return the answer to a conversation (or to one question), formatted by the model's chat template.

        The native engine reads only the tokens after the common prefix with its previous prompt.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not turns:
            raise UsageError("a conversation needs at least one message")
        tokens = self.runner.chat_tokens(turns)
        return self.generate(tokens, max_new_tokens=max_new_tokens, stop=stop, **sampling)

    def logits(self, tokens: Tokens) -> Logits:
        """Return float32 logits `[T, vocab]` for token ids `[T]`, `[B, T, vocab]` for ids `[B, T]`."""
        return self.runner.logits(tokens)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text, without special tokens."""
        return self.runner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, including special tokens."""
        return self.runner.decode(ids)

    def _tokens(self, prompt: str | Sequence[int]) -> list[int]:
        tokens = self.runner.encode_prompt(prompt) if isinstance(prompt, str) else list(prompt)
        if not tokens:
            raise UsageError("the prompt is empty")
        return tokens

    def _run(
        self,
        tokens: Sequence[int],
        show: Callable[[str], object],
        max_new_tokens: int,
        stop: str | Sequence[str],
        sampling: dict[str, Any],
    ) -> None:
        strings = [stop] if isinstance(stop, str) else list(stop)
        try:
            options = Sampling(**sampling)
        except TypeError as cause:
            raise UsageError(f"unknown option: {cause}") from cause
        generate_text(
            self.runner, tokens, show, max_new_tokens=max_new_tokens, stop=strings, sampling=options
        )


def generate_text(
    runner: Runner,
    tokens: Sequence[int],
    show: Callable[[str], object],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    sampling: Sampling | None = None,
) -> list[int]:
    """Generate until a stop token or a stop string; return the new tokens, a stop token included.

    `show` is called with each piece of text as soon as later tokens can no longer change it; a true result ends the
    generation.
    """
    stream = TextStream(runner.decode, stop)

    def on_token(token: int) -> bool:
        if token in runner.stop_tokens:
            return True
        text = stream.push(token)
        return bool(text and show(text)) or stream.stopped

    out = runner.generate(
        tokens,
        max_new_tokens=max_new_tokens,
        on_token=on_token,
        stop=runner.stop_tokens,
        sampling=sampling,
    )
    rest = stream.finish()
    if rest:
        show(rest)
    return out


def _stream(run: Callable[[Callable[[str], object]], object]) -> Iterator[str]:
    """Yield the texts that `run` passes to its callback; `run` runs in its own thread."""
    pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    abandoned = threading.Event()

    def show(text: str) -> bool:
        pieces.put(text)
        return abandoned.is_set()

    def run_in_thread() -> None:
        try:
            run(show)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=run_in_thread, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        abandoned.set()
        thread.join()
