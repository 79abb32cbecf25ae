"""Plain text as documents: two blank lines part them, wherever a text is read, to calibrate or to evaluate."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable
from pathlib import Path

from zeropoint.errors import UsageError

_BREAK = re.compile(r"\n{3,}")
_OTHER_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
                (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))  # fmt: skip


def read_text(path: str | Path, what: str) -> str:
    """Return a UTF-8 file's text, without a byte order mark, lines ended by line feeds alone.

    Raises `UsageError`, which calls the file `what`, for one that cannot be read or is in another encoding.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror or error}") from error
    for mark, name in _OTHER_MARKS:
        if data.startswith(mark):
            raise UsageError(f"{what} {path} cannot be read: it is {name}, save it as UTF-8")
    marked = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[marked:].decode("utf-8")
    except UnicodeDecodeError as error:
        at = marked + error.start
        raise UsageError(
            f"{what} {path} cannot be read: byte {at} (0x{data[at]:02x}) is not UTF-8, save it as UTF-8"
        ) from error
    return text.replace("\r\n", "\n")


def split(content: str) -> list[str]:
    """Return the documents of a text, without the line ends around them; none of them is blank."""
    return [piece.strip("\n") for piece in _BREAK.split(content.replace("\r\n", "\n")) if piece.strip()]


def join(documents: Iterable[str]) -> str:
    """Return a text that `split` takes apart again."""
    return "\n\n\n".join(documents) + "\n"


def in_stream(index: int, document: str) -> str:
    """Return document number `index` as it stands in running text.

    Two line ends before the cut and one after it are what a byte-level tokenizer makes of three in running text, so
    the stream of tokens is that of the unsplit file.
    """
    return ("\n" if index else "") + document + "\n\n"
