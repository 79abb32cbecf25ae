"""The same few prompts, answered greedily by every model; where each leaves the reference's path.

Greedy text is chaotic: one changed token changes all that follow, so the first differing token is
the only comparable one, and a late one is not a measure of quality. It is here because people want
to read what a model says.
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
    """The part of a runner that answers need."""

    def generate(self, tokens: Sequence[int], *, max_new_tokens: int, stop: Container[int] = ()) -> list[int]:
        """Greedy continuation, the new tokens only."""
        ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """One model's answer, cut where it first differs: `same` + `first` + `rest` is the whole text.

    `first_difference` counts tokens from 0, and is None when all of them agree with the reference's
    (or this is the reference).
    """

    model: str
    same: str
    first: str
    rest: str
    first_difference: int | None
    token_count: int

    @property
    def text(self) -> str:
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
    """Greedy answers as token ids, a final stop token left out; `prompts` are ids too. Raises UsageError for an empty
    one."""
    answers = []
    for prompt in prompts:
        if not prompt:
            raise UsageError("a prompt is empty")
        ids = runner.generate(prompt, max_new_tokens=max_new_tokens, stop=stop)
        answers.append(ids[:-1] if ids and ids[-1] in stop else ids)
    return answers


def first_difference(reference: Sequence[int], other: Sequence[int]) -> int | None:
    """Index of the first token that differs, or None for equal sequences. An answer that ends
    earlier differs at its end."""
    pairs = zip(reference, other, strict=False)
    found = next((i for i, (a, b) in enumerate(pairs) if a != b), None)
    if found is None and len(reference) != len(other):
        return min(len(reference), len(other))
    return found


def mark(model: str, runner: Speaker, ids: Sequence[int], reference: Sequence[int]) -> Answer:
    """Decode an answer and cut its text at the first token that differs from `reference`."""
    text = runner.decode(ids)
    index = first_difference(reference, ids)
    if index is None:
        return Answer(model, text, "", "", None, len(ids))
    # Decoding a prefix may end in half a character; the common prefix of the texts does not.
    start = _shared_length(runner.decode(ids[:index]), text)
    end = max(_shared_length(runner.decode(ids[: index + 1]), text), start)
    return Answer(model, text[:start], text[start:end], text[end:], index, len(ids))


def _shared_length(a: str, b: str) -> int:
    pairs = enumerate(zip(a, b, strict=False))
    return next((i for i, (x, y) in pairs if x != y), min(len(a), len(b)))
