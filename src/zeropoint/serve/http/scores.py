"""Log-probabilities of tokens in the formats of OpenAI's APIs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zeropoint.serve.request import NewToken, TokenScore
from zeropoint.tokenizer import Tokenizer

#: The lowest log-probability in a response: JSON has no -infinity, and OpenAI uses this number instead.
_LEAST = -9999.0


def token_text(tokenizer: Tokenizer, number: int) -> str:
    """Return one token as text; bytes that are not valid UTF-8 become U+FFFD."""
    return tokenizer.token_bytes(number).decode("utf-8", errors="replace")


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[NewToken], top: int) -> list[dict[str, Any]]:
    """Return the entries of the chat API's `logprobs.content`, each with at most `top` alternatives."""
    out = []
    for token in tokens:
        score = token.score or TokenScore(_LEAST)
        entry = _entry(tokenizer, token.id, score.logprob)
        out.append({**entry, "top_logprobs": [_entry(tokenizer, *each) for each in score.top[:top]]})
    return out


def _entry(tokenizer: Tokenizer, number: int, logprob: float) -> dict[str, Any]:
    content = tokenizer.token_bytes(number)
    return {
        "token": content.decode("utf-8", errors="replace"),
        "logprob": max(logprob, _LEAST),
        "bytes": list(content),
    }


class TextLogprobs:
    """Builds the `logprobs` objects of one answer of `/v1/completions`; `top`: number of alternatives per token."""

    def __init__(self, tokenizer: Tokenizer, top: int, offset: int = 0) -> None:
        self._tokenizer, self._top = tokenizer, top
        self._offset = offset

    def of(self, scored: Sequence[tuple[int, TokenScore | None]]) -> dict[str, Any]:
        """Return the `logprobs` object of the next tokens. Each call continues where the last call ended."""
        tokens, logprobs, tops, offsets = [], [], [], []
        for number, score in scored:
            text = token_text(self._tokenizer, number)
            tokens.append(text)
            offsets.append(self._offset)
            self._offset += len(text)
            logprobs.append(None if score is None else max(score.logprob, _LEAST))
            tops.append(None if score is None else self._alternatives(text, score))
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _alternatives(self, text: str, score: TokenScore) -> dict[str, float]:
        """Return the texts and log-probabilities of the most likely tokens and of the chosen token.

        Among tokens with the same text, the most likely one counts.
        """
        out: dict[str, float] = {}
        for number, logprob in score.top[: self._top]:
            out.setdefault(token_text(self._tokenizer, number), max(logprob, _LEAST))
        out.setdefault(text, max(score.logprob, _LEAST))
        return out
