"""Calibration text -> token windows, and a digest that says which text it was.

A `.jsonl` file holds one conversation or document a line: `{"messages": [{"role": ..., "content": ...}, ...]}`,
written out by the model's own chat template where it has one, or `{"text": ...}`. Any other file is UTF-8 text
whose documents are separated by two blank lines. The documents follow each other in one stream of tokens, as in
training, cut into windows of equal length without overlap; nothing is padded, so that no statistic sees padding.
What the tokenizer puts before a text (BOS) stays before each document.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError
from numpy.typing import NDArray

from zeropoint import documents
from zeropoint.errors import UsageError
from zeropoint.jsonfile import parse_json

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

    `tokenizer` is a Hugging Face one. A text too short for `tokens` gives fewer windows, one too short for `length` a
    single shorter one. `seed` 0 takes the documents in the file's order, any other shuffles them. Raises `UsageError`
    when the file cannot be read, holds no text or too little of it.
    """
    if tokens < 2 or length < 2:
        raise UsageError(f"calibration needs at least 2 tokens, not {tokens} in windows of {length}")
    content, source = _read(path)
    is_lines = path is not None and Path(path).suffix.lower() == ".jsonl"
    if is_lines:
        texts = list(_conversations(content, source, tokenizer))
    else:
        texts = [documents.in_stream(i, text) for i, text in enumerate(documents.split(content))]
    if seed:
        np.random.default_rng(seed).shuffle(texts)
    stream = _stream(texts, lambda text: list(tokenizer.encode(text)), tokens)
    length = min(length, tokens, len(stream))
    if length < 2:
        raise UsageError(f"the calibration text {source} has fewer than two tokens")
    count = max(1, min(tokens, len(stream)) // length)
    windows = np.asarray(stream[: count * length], np.int64).reshape(count, length)
    return Calibration(windows, source, hashlib.sha256(content.encode()).hexdigest())


def _read(path: str | Path | None) -> tuple[str, str]:
    """The text and what to call it."""
    if path is None:
        return (resources.files(__package__) / "data" / "sample.txt").read_text(encoding="utf-8"), BUILT_IN
    try:
        return Path(path).read_text(encoding="utf-8").replace("\r\n", "\n"), Path(path).name
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the calibration text {path} cannot be read: {error}") from error


def _conversations(content: str, source: str, tokenizer: Any) -> Iterator[str]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield _written_out(parse_json(line), tokenizer)
            except (ValueError, TypeError, KeyError, TemplateError) as error:
                raise UsageError(
                    f'{source}, line {number}, is not {{"messages": [{{"role": ..., "content": ...}}]}} or '
                    f'{{"text": ...}}: {error}'
                ) from error


def _written_out(record: Mapping[str, Any], tokenizer: Any) -> str:
    """One line's text, turns marked as the model knows them."""
    if "messages" not in record:
        return str(record["text"]) + "\n\n"
    turns: Sequence[Mapping[str, str]] = record["messages"]
    if getattr(tokenizer, "chat_template", None):
        return str(tokenizer.apply_chat_template(turns, tokenize=False))
    return "\n\n".join(str(turn["content"]) for turn in turns) + "\n\n"


def _stream(texts: Sequence[str], encode: Callable[[str], list[int]], wanted: int) -> list[int]:
    stream: list[int] = []
    for text in texts:
        stream += encode(text)
        if len(stream) >= wanted:
            break
    return stream
