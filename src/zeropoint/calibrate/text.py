"""Calibration text -> token windows, with a digest that identifies the text.

A `.jsonl` file holds one record per line: a conversation `{"messages": [{"role": ..., "content": ...}, ...]}`, which
the model's chat template renders if it has one, or a document `{"text": ...}`. Only line feeds end a line (JSON Lines);
records whose text is null or empty are skipped. Any other file is UTF-8 text with two blank lines between documents.
The documents are joined into one stream of tokens, as in training, and the stream is cut into windows of equal length
without overlap. Nothing is padded, so padding never enters the statistics.

BOS: a document begins with the tokens that the tokenizer puts before a text; a conversation begins as its template
says. A window that begins inside a document starts with those tokens too, because the model never reads a sequence
without them. If the tokenizer puts nothing before a text, no token is added.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError, ZeropointError
from zeropoint.files import documents
from zeropoint.files.json_file import parse_json
from zeropoint.tokenizer import Message, Text, reader
from zeropoint.tokenizer.templates import plain_content

#: 128 windows of 512 tokens, the size with which most algorithms' results were published.
DEFAULT_TOKENS = 128 * 512
DEFAULT_LENGTH = 512
BUILT_IN = "built-in sample (Wikipedia, The Debian Administrator's Handbook)"

#: What reading a line of a .jsonl file raises if the line is no valid record.
INVALID_RECORD = (ValueError, TypeError, KeyError, AttributeError, ZeropointError)


@dataclass(frozen=True, slots=True)
class Calibration:
    """Token windows int64 `[windows, length]`, and the name (`source`) and SHA-256 of the file they come from."""

    tokens: NDArray[np.int64]
    source: str
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the entry of the card. The hash of the tokens differs for other counts or orders of the same file."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "windows": int(self.tokens.shape[0]),
            "length": int(self.tokens.shape[1]),
            "tokens_sha256": hashlib.sha256(self.tokens.astype("<i8").tobytes()).hexdigest(),
        }


def calibration(
    tokenizer: Any,
    path: str | Path | None = None,
    *,
    tokens: int = DEFAULT_TOKENS,
    length: int = DEFAULT_LENGTH,
    seed: int = 0,
) -> Calibration:
    """Return windows of `length` tokens, at most `tokens` in all, from the file `path` or the built-in sample (None).

    `tokenizer` is a `zeropoint.tokenizer.Text` or a Hugging Face tokenizer. A text with fewer than `tokens` tokens
    gives fewer windows; a text with fewer than `length` tokens gives one shorter window. `seed` 0 keeps the documents
    in the file's order; any other seed shuffles them. Raises `UsageError` if the file cannot be read, a line is no
    valid record, or the text has fewer than two tokens.
    """
    if tokens < 2 or length < 2:
        raise UsageError(f"calibration needs at least 2 tokens, not {tokens} in windows of {length}")
    content, source = _read(path)
    text = reader(tokenizer)
    if path is not None and Path(path).suffix.lower() == ".jsonl":
        encoders = list(_records(content, source, text))
    else:
        pieces = (documents.in_stream(i, each) for i, each in enumerate(documents.split(content)))
        encoders = [partial(text.encode_prompt, piece) for piece in pieces]
    if seed:
        np.random.default_rng(seed).shuffle(encoders)
    windows = _windows(encoders, text.prefix, tokens, length)
    if windows.shape[1] < 2:
        raise UsageError(f"the calibration text {source} has fewer than two tokens")
    return Calibration(windows, source, hashlib.sha256(content.encode()).hexdigest())


def refuse_missing(path: str | Path | None) -> None:
    """Raise `UsageError` if the calibration file cannot be read; called before a model is opened. None is sound."""
    if path is not None and (os.path.isdir(path) or not os.access(path, os.R_OK)):
        documents.read_text(path, "the calibration text")


def _read(path: str | Path | None) -> tuple[str, str]:
    """Return the text of the file (None: the built-in sample) and the name under which it is reported."""
    if path is None:
        return (resources.files(__package__) / "data" / "sample.txt").read_text(encoding="utf-8"), BUILT_IN
    return documents.read_text(path, "the calibration text"), Path(path).name


def _records(content: str, source: str, text: Text) -> Iterator[Callable[[], list[int]]]:
    """Yield, for each line of a .jsonl file with text, a function that returns the line's tokens.

    Raises `UsageError` with the line's number if the line is no valid record.
    """
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                encoder = _record(parse_json(line), text)
            except INVALID_RECORD as error:
                raise UsageError(
                    f'{source}, line {number}, is not {{"messages": [{{"role": ..., "content": ...}}]}} or '
                    f'{{"text": ...}}: {error}'
                ) from error
            if encoder is not None:
                yield encoder


def contents_of(record: Mapping[str, Any]) -> list[str]:
    """Return the texts of one record of a .jsonl file that are not empty: the document, or each message's.

    Raises one of `INVALID_RECORD` if the record is not valid.
    """
    contents = (
        [turn.get("content") for turn in record["messages"]] if "messages" in record else [record["text"]]
    )
    return [text for text in map(plain_content, contents) if text]


def _record(record: Mapping[str, Any], text: Text) -> Callable[[], list[int]] | None:
    """Return a function that returns one record's tokens (a conversation by the chat template); None without text."""
    contents = contents_of(record)
    if not contents:
        return None
    turns: Sequence[Message] = record.get("messages", ())
    written = text.chat_text(turns, add_generation_prompt=False) if turns else None
    if written is not None:
        return partial(text.encode, written)
    return partial(text.encode_prompt, "\n\n".join(contents) + "\n\n")


def _windows(
    encoders: Sequence[Callable[[], list[int]]], prefix: list[int], limit: int, length: int
) -> NDArray[np.int64]:
    """Return windows int64 `[count, length]` of the stream of documents, at most `limit` tokens.

    A text too short for `length` gives one shorter window. A window that begins inside a document begins with `prefix`.
    """
    length = min(length, limit)
    windows: list[list[int]] = []
    window: list[int] = []
    for encode in encoders:
        rest = encode()
        while rest:
            room = length - len(window)
            window, rest = window + rest[:room], rest[room:]
            if len(window) == length:
                windows.append(window)
                window = prefix[: length - 1] if rest else []
        if len(windows) * length + len(window) >= limit:
            break
    full_windows = windows[: limit // length] or [window]
    return np.asarray(full_windows, np.int64)
