"""`Conversation`: a chat whose earlier answers stay the exact tokens that the model generated.

At each turn the chat template renders all messages. The tokenizer may split an earlier answer into tokens that differ
from the generated ones. The key-value cache of that answer would then be useless, so the generated tokens are put back.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from zeropoint.runtime.model import generate_text
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Message


class Conversation:
    """The messages of a chat, after those of `start` (a system message, say). Not for use by two threads at once."""

    def __init__(self, runner: Runner, start: Sequence[Message] = ()) -> None:
        self._runner = runner
        self._start = list(start)
        self.reset()

    def reset(self) -> None:
        """Remove all messages but those of `start`."""
        self.messages: list[Message] = list(self._start)
        # the last prompt's tokens: from the template, and as the model read them
        self._rendered: list[int] = []
        self._prompt: list[int] = []
        # the last answer's tokens; None if they do not decode to its text
        self._answer: list[int] | None = None

    def ask(
        self,
        text: str,
        show: Callable[[str], object],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> str:
        """Add a user's message and the model's answer, and return the answer.

        `show` is called with each piece of the answer; a true result ends the answer. Ctrl-C also ends the answer; the
        text so far becomes the answer. Raises `UsageError`, and leaves the messages unchanged, if the conversation no
        longer fits the model's context.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        rendered = self._runner.chat_tokens(messages)
        prompt = self._with_own_answer(rendered)
        pieces: list[str] = []
        tokens: list[int] | None = None

        def collect(piece: str) -> object:
            pieces.append(piece)
            return show(piece)

        with contextlib.suppress(KeyboardInterrupt):
            tokens = generate_text(
                self._runner,
                prompt,
                collect,
                max_new_tokens=max_new_tokens,
                stop=stop,
                sampling=sampling,
            )
        answer = "".join(pieces)
        if tokens and tokens[-1] in self._runner.stop_tokens:
            tokens = tokens[:-1]
        same_text = tokens is not None and self._runner.decode(tokens) == answer
        self._rendered, self._prompt, self._answer = rendered, prompt, tokens if same_text else None
        self.messages = [*messages, {"role": "assistant", "content": answer}]
        return answer

    def _with_own_answer(self, rendered: list[int]) -> list[int]:
        """Return the prompt `rendered` with the tokens of the last prompt and answer as the model read and chose them.

        Returns `rendered` unchanged if the template renders the last prompt or answer differently than before.
        """
        if self._answer is None:
            return rendered
        before = len(self._rendered)
        answer = self._runner.encode(str(self.messages[-1]["content"]))
        if rendered[:before] != self._rendered or rendered[before : before + len(answer)] != answer:
            return rendered
        return [*self._prompt, *self._answer, *rendered[before + len(answer) :]]
