"""Plain text as documents: two blank lines part them, wherever a text is read, to calibrate or to evaluate."""

from __future__ import annotations

import re
from collections.abc import Iterable

_BREAK = re.compile(r"\n{3,}")


def split(content: str) -> list[str]:
    """The documents of a text, without the line ends around them; none of them is blank."""
    return [piece.strip("\n") for piece in _BREAK.split(content.replace("\r\n", "\n")) if piece.strip()]


def join(documents: Iterable[str]) -> str:
    """A text that `split` takes apart again."""
    return "\n\n\n".join(documents) + "\n"


def in_stream(index: int, document: str) -> str:
    """Document number `index` as it stands in running text.

    Two line ends before the cut and one after it are what a byte-level tokenizer makes of three in running text, so
    the stream of tokens is that of the unsplit file.
    """
    return ("\n" if index else "") + document + "\n\n"
