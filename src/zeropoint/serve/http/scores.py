"""Log-probabilities of tokens, as OpenAI's APIs show them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zeropoint.serve.request import NewToken, TokenScore
from zeropoint.tokenizer import Tokenizer

#: The least log-probability that is shown: JSON has no -infinity, and clients of OpenAI know this number.
_LEAST = -9999.0


def token_text(tokenizer: Tokenizer, number: int) -> str:
    """Return one token as text; bytes that are no whole character become U+FFFD."""
    return tokenizer.token_bytes(number).decode("utf-8", errors="replace")


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[NewToken], top: int) -> list[dict[str, Any]]:
    """Return the entries of chat's `logprobs.content`."""
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
    """The `logprobs` object of `/v1/completions`. `top`: how many alternatives each token has."""

    def __init__(self, tokenizer: Tokenizer, top: int, offset: int = 0) -> None:
        self._tokenizer, self._top = tokenizer, top
        self._offset = offset

    def of(self, scored: Sequence[tuple[int, TokenScore | None]]) -> dict[str, Any]:
        """Return the object for the next tokens of the text, which may come in several parts."""
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
        """Return the most likely tokens, and the one chosen, with their log-probabilities.

        Of tokens with the same text, the most likely counts.
        """
        out: dict[str, float] = {}
        for number, logprob in score.top[: self._top]:
            out.setdefault(token_text(self._tokenizer, number), max(logprob, _LEAST))
        out.setdefault(text, max(score.logprob, _LEAST))
        return out
