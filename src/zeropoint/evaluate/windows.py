"""Evaluation text -> documents -> token windows.

The text of all documents is one stream, cut into windows of `context` tokens without overlap. Each window
begins with what the model's tokenizer puts before a text, BOS for Gemma and Llama 3 and nothing for Qwen and
SmolLM2, as llama.cpp's perplexity does; a BOS is read and never predicted. `compare`, `check` and `fit` all cut
here. A token still knows which document it came from, because documents (not tokens, which depend on each
other) are what the bootstrap resamples.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.files import documents
from zeropoint.tokenizer import prefix_of

DEFAULT_CONTEXT = 512
# Enough of one topic for a few hundred tokens: many short documents give the bootstrap more to
# resample than a few long ones of the same total length.
_TOPIC_CHARACTERS = 2400


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """Documents to measure on, and in words where they come from (shown beside every number)."""

    documents: tuple[str, ...]
    source: str

    @property
    def digest(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of all documents."""
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Windows:
    """`tokens` int64 `[windows, context]`; `documents` int64 of the same shape, an index each."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def scored_tokens(self) -> int:
        """Predictions made: every token of a window but its first."""
        windows, context = self.tokens.shape
        return int(windows * (context - 1))

    @property
    def key(self) -> dict[str, Any]:
        """What names the tokens among others that are kept."""
        found = hashlib.sha256(self.tokens.tobytes()).hexdigest()
        return {"windows": list(self.tokens.shape), "tokens": found}


def load_text(path: str | Path | None) -> EvaluationText:
    """Read a UTF-8 file whose documents are separated by two blank lines; None is `default_text`.

    Raises UsageError when the file cannot be read or holds no text.
    """
    if path is None:
        return default_text()
    file = Path(path)
    found = tuple(documents.split(documents.read_text(file, "the evaluation text")))
    if not found:
        raise UsageError(f"the evaluation text {file} is empty")
    return EvaluationText(found, file.name)


def default_text() -> EvaluationText:
    """Prose of Python's own language reference, which every CPython carries (`pydoc_data.topics`,
    PSF licence), so that nothing need be downloaded. It differs a little between Python versions;
    `EvaluationText.digest` tells which one a number was made on."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UsageError(
            "this Python comes without pydoc_data, the built-in evaluation text; name a text file"
        ) from error
    seen: set[str] = set()  # topics quote each other
    prose_of_topics = []
    for name in sorted(topics):
        paragraphs: list[str] = []
        for paragraph in re.split(r"\n[ \t]*\n", topics[name]):
            prose = _as_prose(paragraph)
            if prose and prose not in seen and sum(map(len, paragraphs)) < _TOPIC_CHARACTERS:
                seen.add(prose)
                paragraphs.append(prose)
        if paragraphs:
            prose_of_topics.append("\n\n".join(paragraphs))
    return EvaluationText(tuple(prose_of_topics), "Python's language reference (pydoc topics)")


def _as_prose(paragraph: str) -> str:
    """One paragraph on one line, or "" for headings, grammar and code."""
    lines = paragraph.strip("\n").split("\n")
    text = " ".join(line.strip() for line in lines)
    is_indented = any(line.startswith(" ") for line in lines)
    is_sentence = text.endswith((".", ":")) and len(text) > 80 and text[0].isalpha()
    return text if is_sentence and not is_indented and "::=" not in text else ""


class Reader(Protocol):
    """The part of a tokenizer, or of a runner, that windows need."""

    def encode(self, text: str) -> list[int]: ...
    def encode_prompt(self, text: str) -> list[int]: ...


def make_windows(
    text: EvaluationText, reader: Reader, *, tokens: int = 8192, context: int = DEFAULT_CONTEXT
) -> Windows:
    """Return as many windows of the text's token stream as score at least `tokens` tokens.

    A shorter text gives fewer windows; one shorter than `context` gives a single shorter window.
    Only as many documents as needed are encoded. Raises `UsageError` when fewer than two tokens come out.
    """
    if tokens < 1 or context < 2:
        raise UsageError(f"evaluation needs at least 1 token and a context of 2, not {tokens} and {context}")
    count = -(-tokens // (context - 1))
    prefix = prefix_of(reader.encode, reader.encode_prompt)[: context - 1]
    wanted = count * (context - len(prefix))
    stream: list[int] = []
    owners: list[int] = []
    for index, document in enumerate(text.documents):
        ids = reader.encode(documents.in_stream(index, document))
        stream += ids
        owners += [index] * len(ids)
        if len(stream) >= wanted:
            break
    step = min(context - len(prefix), len(stream))  # tokens of the stream in a window
    if not step or step + len(prefix) < 2:
        raise UsageError(f"the evaluation text {text.source} has fewer than two tokens")
    count = min(wanted, len(stream)) // step
    own = np.asarray(stream[: count * step], np.int64).reshape(count, step)
    of = np.asarray(owners[: count * step], np.int64).reshape(count, step)
    return Windows(
        np.hstack([np.tile(np.asarray(prefix, np.int64), (count, 1)), own]),
        np.hstack([np.repeat(of[:, :1], len(prefix), axis=1), of]),
    )
