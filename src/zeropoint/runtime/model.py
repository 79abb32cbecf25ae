"""`Model`: a runner with text in and text out, what `zeropoint.load` gives."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.runtime.protocol import Logits, Runner, Tokens
from zeropoint.runtime.sampling import Sampling
from zeropoint.runtime.streaming import TextStream
from zeropoint.tokenizer import Message

DEFAULT_NEW_TOKENS = 256


class Model:
    """An artifact or checkpoint, ready to run.

    >>> model = zeropoint.load("smollm2-int4")  # doctest: +SKIP
    >>> print(model.generate("The capital of France is", max_new_tokens=8))  # doctest: +SKIP

    The keyword arguments beside `max_new_tokens` and `stop` (strings at which the text ends) are those of
    `Sampling`: `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `seed`; greedy without them.
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
        """The continuation of a text (or of token ids), without the prompt."""
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
        """The same, piece by piece as it is generated. Leaving the loop early ends the generation."""
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
        """The answer to a conversation (or to one question) in the model's chat template. What a conversation
        shares with the one before is not read again by the native engine."""
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if not turns:
            raise UsageError("a conversation needs at least one message")
        tokens = self.runner.chat_tokens(turns)
        return self.generate(tokens, max_new_tokens=max_new_tokens, stop=stop, **sampling)

    def logits(self, tokens: Tokens) -> Logits:
        """float32 `[T, vocab]` for `[T]` token ids, `[B, T, vocab]` for `[B, T]`."""
        return self.runner.logits(tokens)

    def encode(self, text: str) -> list[int]:
        return self.runner.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
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
    """Generate until a stop token or a stop string, telling `show` each piece of text as soon as it is sure; a true
    result ends the generation. Returns the new tokens, a stop token included."""
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
    """Turn a function that calls back with text into an iterator, by running it in a thread of its own."""
    pieces: queue.SimpleQueue[str | BaseException | None] = queue.SimpleQueue()
    left = threading.Event()

    def show(text: str) -> bool:
        pieces.put(text)
        return left.is_set()

    def work() -> None:
        try:
            run(show)
            pieces.put(None)
        except BaseException as error:
            pieces.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (piece := pieces.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece
    finally:
        left.set()
        thread.join()
