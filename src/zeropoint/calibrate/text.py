"""Calibration text -> token windows, and a digest that says which text it was.

A `.jsonl` file holds one conversation or document a line: `{"messages": [{"role": ..., "content": ...}, ...]}`,
written out by the model's own chat template where it has one, or `{"text": ...}`. Lines end at line feeds alone, as
JSON Lines says; a record whose text is null or empty is passed over. Any other file is UTF-8 text whose documents are
separated by two blank lines. The documents follow each other in one stream of tokens, as in training, cut into windows
of equal length without overlap; nothing is padded, so that no statistic sees padding.

BOS: a document begins with what the model's tokenizer puts before a text, once, and a conversation as its template
begins it. A window that begins within a document gets BOS in the place of one token, because the model never reads a
sequence without it. A model whose tokenizer puts nothing before a text gets nothing.
"""

from __future__ import annotations

import hashlib
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

#: 128 windows of 512 tokens: what the published results of most algorithms are made with.
DEFAULT_TOKENS = 128 * 512
DEFAULT_LENGTH = 512
BUILT_IN = "built-in sample (Wikipedia, The Debian Administrator's Handbook)"


@dataclass(frozen=True, slots=True)
class Calibration:
    """`tokens` int64 `[windows, length]`; `sha256` is that of the whole file, `source` its name."""

    tokens: NDArray[np.int64]
    source: str
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """What the card says of it. The tokens' own hash tells apart what the file's does not: count and order."""
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
    """Windows of at most `tokens` tokens from the file `path`, or from the built-in sample.

    `tokenizer` is a `zeropoint.tokenizer.Text` or a Hugging Face one. A text too short for `tokens` gives fewer
    windows, one too short for `length` a single shorter one. `seed` 0 takes the documents in the file's order, any
    other shuffles them. Raises `UsageError` when the file cannot be read, holds no text or too little of it.
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


def _read(path: str | Path | None) -> tuple[str, str]:
    """The text and what to call it."""
    if path is None:
        return (resources.files(__package__) / "data" / "sample.txt").read_text(encoding="utf-8"), BUILT_IN
    return documents.read_text(path, "the calibration text"), Path(path).name


def _records(content: str, source: str, text: Text) -> Iterator[Callable[[], list[int]]]:
    """Yield what encodes each line of a .jsonl file; lines without text are passed over."""
    for number, line in enumerate(content.split("\n"), start=1):
        if line.strip():
            try:
                encoder = _record(parse_json(line), text)
            except (ValueError, TypeError, KeyError, AttributeError, ZeropointError) as error:
                raise UsageError(
                    f'{source}, line {number}, is not {{"messages": [{{"role": ..., "content": ...}}]}} or '
                    f'{{"text": ...}}: {error}'
                ) from error
            if encoder is not None:
                yield encoder


def _record(record: Mapping[str, Any], text: Text) -> Callable[[], list[int]] | None:
    """Return what encodes one record, turns marked as the model knows them; None for one without text."""
    if "messages" not in record:
        content = plain_content(record["text"])
        return partial(text.encode_prompt, content + "\n\n") if content else None
    turns: Sequence[Message] = record["messages"]
    contents = [plain_content(turn.get("content")) for turn in turns]
    if not any(contents):
        return None
    written = text.chat_text(turns, add_generation_prompt=False)
    if written is not None:
        return partial(text.encode, written)
    return partial(text.encode_prompt, "\n\n".join(each for each in contents if each) + "\n\n")


def _windows(
    encoders: Sequence[Callable[[], list[int]]], prefix: list[int], wanted: int, length: int
) -> NDArray[np.int64]:
    """Return windows int64 `[count, length]` of the documents' stream, at most `wanted` tokens; a text too short for
    `length` gives one shorter window. A window that begins within a document begins with `prefix`."""
    length = min(length, wanted)
    windows: list[list[int]] = []
    window: list[int] = []
    for encode in encoders:
        left = encode()
        while left:
            room = length - len(window)
            window, left = window + left[:room], left[room:]
            if len(window) == length:
                windows.append(window)
                window = prefix[: length - 1] if left else []
        if len(windows) * length + len(window) >= wanted:
            break
    found = windows[: wanted // length] or [window]
    return np.asarray(found, np.int64)
