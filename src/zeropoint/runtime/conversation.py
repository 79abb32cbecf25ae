"""A conversation, whose answers stay the tokens that the model chose.

A chat template is rendered for all messages at each turn. A text has many tokenizations, and the model's own choice for
an answer is often not the tokenizer's; where the prompt has the tokenizer's, the key-value cache of the answer is lost.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

from zeropoint.runtime.model import generate_text
from zeropoint.runtime.protocol import Runner
from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Message


class Conversation:
    """The messages so far, `start` (a system message, say) before them. Not for use by two threads at once."""

    def __init__(self, runner: Runner, start: Sequence[Message] = ()) -> None:
        self._runner = runner
        self._start = list(start)
        self.reset()

    def reset(self) -> None:
        """Forget everything but the start."""
        self.messages: list[Message] = list(self._start)
        self._rendered: list[int] = []  # the last prompt as the template gives it, and as the model read it
        self._prompt: list[int] = []
        self._answer: list[int] | None = None  # the last answer's tokens; None where they are not its text's

    def ask(
        self,
        text: str,
        show: Callable[[str], object],
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        sampling: Sampling | None = None,
    ) -> str:
        """Add a user's message and the model's answer, and return the answer. `show` is told each piece of it; a true
        result ends it.

        Ctrl-C ends the answer, and what was said counts. Raises `UsageError`, with the messages as before, when the
        conversation no longer fits the model's context.
        """
        asked = [*self.messages, {"role": "user", "content": text}]
        rendered = self._runner.chat_tokens(asked)
        prompt = self._with_own_answer(rendered)
        pieces: list[str] = []
        tokens: list[int] | None = None

        def tell(piece: str) -> object:
            pieces.append(piece)
            return show(piece)

        with contextlib.suppress(KeyboardInterrupt):
            tokens = generate_text(
                self._runner,
                prompt,
                tell,
                max_new_tokens=max_new_tokens,
                stop=stop,
                sampling=sampling,
            )
        answer = "".join(pieces)
        if tokens and tokens[-1] in self._runner.stop_tokens:
            tokens = tokens[:-1]
        same_text = tokens is not None and self._runner.decode(tokens) == answer
        self._rendered, self._prompt, self._answer = rendered, prompt, tokens if same_text else None
        self.messages = [*asked, {"role": "assistant", "content": answer}]
        return answer

    def _with_own_answer(self, rendered: list[int]) -> list[int]:
        """The template's tokens of all messages, with those that the model read and chose in the place of the last
        prompt and answer; unchanged where the template renders these otherwise than before."""
        if self._answer is None:
            return rendered
        before = len(self._rendered)
        answer = self._runner.encode(str(self.messages[-1]["content"]))
        if rendered[:before] != self._rendered or rendered[before : before + len(answer)] != answer:
            return rendered
        return [*self._prompt, *self._answer, *rendered[before + len(answer) :]]
