"""Plain text files of documents, for calibration and evaluation. Two blank lines separate documents."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from zeropoint.errors import UsageError, reason

_BREAK = re.compile(r"\n{3,}")
_OTHER_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
                (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))  # fmt: skip


def read_text(path: str | Path, what: str) -> str:
    """Return the text of a UTF-8 file, without a byte order mark, with CRLF replaced by LF.

    Raises `UsageError` if the file cannot be read or is not UTF-8; `what` names the file in the message.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {reason(error)}") from error
    for mark, name in _OTHER_MARKS:
        if data.startswith(mark):
            raise UsageError(f"{what} {path} cannot be read: it is {name}, save it as UTF-8")
    mark_length = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[mark_length:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = mark_length + error.start
        raise UsageError(
            f"{what} {path} cannot be read: byte {at} (0x{data[at]:02x}) is not UTF-8, save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n")


def split(content: str) -> list[str]:
    """Return the documents of a text, without blank ones and without the newlines around each."""
    return [piece.strip("\n") for piece in _BREAK.split(content.replace("\r\n", "\n")) if piece.strip()]


def join(documents: Iterable[str]) -> str:
    """Return one text of all documents, the inverse of `split`."""
    return "\n\n\n".join(documents) + "\n"


def in_stream(index: int, document: str) -> str:
    """Return document number `index` with the newlines around it, to be tokenized alone.

    A byte-level tokenizer splits the three newlines between documents into two and one. So the tokens of all documents
    together equal the tokens of the unsplit text.
    """
    return ("\n" if index else "") + document + "\n\n"
