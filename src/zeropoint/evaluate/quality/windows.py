"""Token windows of the evaluation text, for `compare`, `check` and `fit`.

The tokens of all documents form one stream, cut into windows of `context` tokens without overlap. As in llama.cpp's
perplexity, each window begins with the tokens that the model's tokenizer puts before a text (BOS for Gemma and Llama 3,
nothing for Qwen and SmolLM2); a BOS is read and never predicted. Each token keeps the index of its document, because
the bootstrap resamples documents (tokens of one document depend on each other).
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
# Maximum number of characters of one topic: the bootstrap needs many documents, so each must be short.
_TOPIC_CHARACTERS = 2400


@dataclass(frozen=True, slots=True)
class EvaluationText:
    """The documents of an evaluation, and their source in words (shown beside every number)."""

    documents: tuple[str, ...]
    source: str

    @property
    def digest(self) -> str:
        """Return the first 12 hexadecimal digits of the SHA-256 of all documents."""
        return hashlib.sha256("\0".join(self.documents).encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Windows:
    """Token windows: `tokens`, int64 `[windows, context]`, and the document index of each token, `documents`."""

    tokens: NDArray[np.int64]
    documents: NDArray[np.int64]

    @property
    def scored_tokens(self) -> int:
        """The number of predicted tokens: all tokens of a window but the first."""
        windows, context = self.tokens.shape
        return int(windows * (context - 1))

    @property
    def key(self) -> dict[str, Any]:
        """The shape and SHA-256 of the tokens, for cache keys."""
        digest = hashlib.sha256(self.tokens.tobytes()).hexdigest()
        return {"windows": list(self.tokens.shape), "tokens": digest}


def load_text(path: str | Path | None) -> EvaluationText:
    """Read a UTF-8 file with two blank lines between documents; for None return `default_text`.

    Raises `UsageError` if the file cannot be read or holds no text.
    """
    if path is None:
        return default_text()
    file = Path(path)
    parts = tuple(documents.split(documents.read_text(file, "the evaluation text")))
    if not parts:
        raise UsageError(f"the evaluation text {file} is empty")
    return EvaluationText(parts, file.name)


def default_text() -> EvaluationText:
    """Return prose of Python's own language reference (`pydoc_data.topics`, PSF licence), which CPython includes.

    No download is needed. The text differs a little between Python versions; `EvaluationText.digest` identifies it.
    Raises `UsageError` if this Python lacks the module.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UsageError(
            "this Python comes without pydoc_data, the built-in evaluation text; name a text file"
        ) from error
    used: set[str] = set()  # topics quote each other
    prose_of_topics = []
    for name in sorted(topics):
        paragraphs: list[str] = []
        for paragraph in re.split(r"\n[ \t]*\n", topics[name]):
            prose = _as_prose(paragraph)
            if prose and prose not in used and sum(map(len, paragraphs)) < _TOPIC_CHARACTERS:
                used.add(prose)
                paragraphs.append(prose)
        if paragraphs:
            prose_of_topics.append("\n\n".join(paragraphs))
    return EvaluationText(tuple(prose_of_topics), "Python's language reference (pydoc topics)")


def _as_prose(paragraph: str) -> str:
    """Return a paragraph as one line, or "" for headings, grammar and code."""
    lines = paragraph.strip("\n").split("\n")
    text = " ".join(line.strip() for line in lines)
    is_indented = any(line.startswith(" ") for line in lines)
    is_sentence = text.endswith((".", ":")) and len(text) > 80 and text[0].isalpha()
    return text if is_sentence and not is_indented and "::=" not in text else ""


class Reader(Protocol):
    """An encoder of text: the part of a tokenizer or a runner that windows need."""

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text alone."""
        ...

    def encode_prompt(self, text: str) -> list[int]:
        """Return the token ids of a text, with the tokens that the tokenizer puts before a text."""
        ...


def make_windows(
    text: EvaluationText, reader: Reader, *, tokens: int = 8192, context: int = DEFAULT_CONTEXT
) -> Windows:
    """Return just enough windows of the text's token stream to score at least `tokens` tokens.

    A short text gives fewer windows; a text shorter than `context` gives one shorter window. Documents beyond the last
    window are not encoded. Raises `UsageError` if `tokens` or `context` is too small, or the text has fewer than two
    tokens.
    """
    if tokens < 1 or context < 2:
        raise UsageError(f"evaluation needs at least 1 token and a context of 2, not {tokens} and {context}")
    count = -(-tokens // (context - 1))
    prefix = prefix_of(reader.encode, reader.encode_prompt)[: context - 1]
    stream_length = count * (context - len(prefix))
    stream: list[int] = []
    owners: list[int] = []
    for index, document in enumerate(text.documents):
        ids = reader.encode(documents.in_stream(index, document))
        stream += ids
        owners += [index] * len(ids)
        if len(stream) >= stream_length:
            break
    step = min(context - len(prefix), len(stream))  # tokens of the stream in a window
    if not step or step + len(prefix) < 2:
        raise UsageError(f"the evaluation text {text.source} has fewer than two tokens")
    count = min(stream_length, len(stream)) // step
    own = np.asarray(stream[: count * step], np.int64).reshape(count, step)
    of = np.asarray(owners[: count * step], np.int64).reshape(count, step)
    return Windows(
        np.hstack([np.tile(np.asarray(prefix, np.int64), (count, 1)), own]),
        np.hstack([np.repeat(of[:, :1], len(prefix), axis=1), of]),
    )
