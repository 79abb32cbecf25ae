"""`Output`: the output items of `/v1/responses` (a message, function calls), and the events that announce them."""

from __future__ import annotations

import time
from typing import Any

from zeropoint.serve.http.answers import new_id, split
from zeropoint.serve.http.scores import chat_logprobs
from zeropoint.serve.request import LENGTH, NewToken
from zeropoint.serve.text import Piece
from zeropoint.serve.tools import CallPart, ToolParser
from zeropoint.tokenizer import Tokenizer


class Output:
    """The output items of one response.

    `logprobs` is the number of alternatives with each token's log-probability; None leaves log-probabilities out.
    """

    def __init__(self, tokenizer: Tokenizer, parser: ToolParser | None, logprobs: int | None) -> None:
        self.items: list[dict[str, Any]] = []
        self._tokenizer, self._parser, self._logprobs = tokenizer, parser, logprobs
        self._finish: str | None = None
        self._open = False

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """Add a piece of the answer; return the events that announce it."""
        text, parts = split(self._parser, piece)
        out: list[dict[str, Any]] = []
        if text and (text.strip() or self._in_message or not self.items):
            out += self._add_text(text, piece.shown)
        for part in parts:
            out += self._add_call(part)
        if piece.finish is not None:
            self._finish = piece.finish
            if not self.items:
                out += self._begin_message()  # an empty answer is a message, too
            out += self._close()
        return out

    def ended(self) -> dict[str, Any]:
        """Return the fields that the end of the answer sets in the response."""
        cut = self._finish == LENGTH
        return {
            "status": "incomplete" if cut else "completed",
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "completed_at": None if cut else int(time.time()),
            "output": self.items,
        }

    @property
    def _in_message(self) -> bool:
        return self._open and self.items[-1]["type"] == "message"

    def _add_text(self, text: str, tokens: list[NewToken]) -> list[dict[str, Any]]:
        out = [] if self._in_message else self._begin_message()
        entries = [] if self._logprobs is None else chat_logprobs(self._tokenizer, tokens, self._logprobs)
        content = self.items[-1]["content"][0]
        content["text"] += text
        content["logprobs"] += entries
        return [*out, self._text_event("response.output_text.delta", delta=text, logprobs=entries)]

    def _begin_message(self) -> list[dict[str, Any]]:
        part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        message = {
            "id": new_id("msg", "_"),
            "type": "message",
            "status": "in_progress",
            "role": "assistant",
            "content": [],
        }
        out = self._begin(message)
        self.items[-1]["content"].append(part)
        return [*out, self._text_event("response.content_part.added", part=_copy(part))]

    def _add_call(self, part: CallPart) -> list[dict[str, Any]]:
        out = []
        if part.id is not None:
            call = {
                "id": new_id("fc", "_"),
                "type": "function_call",
                "status": "in_progress",
                "call_id": part.id,
            }
            out = self._begin({**call, "name": part.name, "arguments": ""})
        if part.arguments:
            self.items[-1]["arguments"] += part.arguments
            out.append(self._event("response.function_call_arguments.delta", delta=part.arguments))
        return out

    def _begin(self, item: dict[str, Any]) -> list[dict[str, Any]]:
        """End the open item, begin the next one, and return the events of both."""
        out = self._close()
        self.items.append(item)
        self._open = True
        place = len(self.items) - 1
        return [*out, {"type": "response.output_item.added", "output_index": place, "item": _copy(item)}]

    def _close(self) -> list[dict[str, Any]]:
        """End the open item, if there is one, and return the events of its end."""
        if not self._open:
            return []
        self._open = False
        item = self.items[-1]
        item["status"] = "incomplete" if self._finish == LENGTH else "completed"
        out = []
        if item["type"] == "message":
            part = item["content"][0]
            out.append(
                self._text_event(
                    "response.output_text.done", text=part["text"], logprobs=list(part["logprobs"])
                )
            )
            out.append(self._text_event("response.content_part.done", part=_copy(part)))
        else:
            out.append(
                self._event(
                    "response.function_call_arguments.done", name=item["name"], arguments=item["arguments"]
                )
            )
        place = len(self.items) - 1
        return [*out, {"type": "response.output_item.done", "output_index": place, "item": _copy(item)}]

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, **fields}

    def _text_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {**self._event(kind), "content_index": 0, **fields}


def _copy(item: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of an item that later additions do not change."""
    return {
        key: [dict(each) for each in value] if isinstance(value, list) else value
        for key, value in item.items()
    }
