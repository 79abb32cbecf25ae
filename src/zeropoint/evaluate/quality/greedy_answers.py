"""Greedy answers of every model to the same few prompts, cut at the first token that differs from the reference model.

One changed token changes all later tokens, so only the first difference is comparable, and its position does not
measure quality. Answers are in the report because people want to read a model's text.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from zeropoint.errors import UsageError

DEFAULT_PROMPTS = (
    "Why is the sky blue?",
    "What is the capital of France, and what is it known for?",
    "Explain to a child what a computer program is.",
    "Write a short poem about the sea.",
)
DEFAULT_ANSWER_TOKENS = 48


class Speaker(Protocol):
    """A generator of text: the part of a runner that answers need."""

    def generate(self, tokens: Sequence[int], *, max_new_tokens: int, stop: Container[int] = ()) -> list[int]:
        """Return the greedy continuation, the new tokens only."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer, cut at its first difference: the text is `same` + `first` + `rest`.

    `first_difference` is the index of the first differing token, None if all tokens equal the reference model's.
    """

    model: str
    same: str
    first: str
    rest: str
    first_difference: int | None
    token_count: int

    @property
    def text(self) -> str:
        """The whole answer."""
        return self.same + self.first + self.rest

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "text": self.text,
            "same": self.same,
            "first": self.first,
            "rest": self.rest,
            "first_difference": self.first_difference,
            "token_count": self.token_count,
        }


def answer(
    runner: Speaker,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop: Container[int] = (),
) -> list[list[int]]:
    """Return greedy answers to `prompts` (both as token ids), without the final stop token.

    Raises `UsageError` if a prompt is empty.
    """
    answers = []
    for prompt in prompts:
        if not prompt:
            raise UsageError("a prompt is empty")
        ids = runner.generate(prompt, max_new_tokens=max_new_tokens, stop=stop)
        answers.append(ids[:-1] if ids and ids[-1] in stop else ids)
    return answers


def first_difference(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the index of the first differing token, None for equal sequences.

    If one sequence is a prefix of the other, the index is the length of the shorter one.
    """
    pairs = zip(reference, other, strict=False)
    index = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if index is None and len(reference) != len(other):
        return min(len(reference), len(other))
    return index


def mark(model: str, runner: Speaker, ids: Sequence[int], reference: Sequence[int]) -> Answer:
    """Decode the answer `ids` and cut its text at the first token that differs from `reference`."""
    text = runner.decode(ids)
    index = first_difference(reference, ids)
    if index is None:
        return Answer(model, text, "", "", None, len(ids))
    # A decoded prefix may end in half a character; the common prefix of both texts cannot.
    start = _shared_length(runner.decode(ids[:index]), text)
    end = max(_shared_length(runner.decode(ids[: index + 1]), text), start)
    return Answer(model, text[:start], text[start:end], text[end:], index, len(ids))


def _shared_length(a: str, b: str) -> int:
    """Return the length of the common prefix."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
