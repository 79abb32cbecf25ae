"""The errors that Zeropoint raises on purpose. Each message is one sentence: what is wrong, where, and what to do.

::

    ZeropointError                 base; the command line prints it without a traceback
    ├── UsageError                 the call itself is wrong (unknown format, output exists)  exit 2
    ├── CheckpointError            the source model cannot be read or is not sound           exit 2
    ├── ArtifactError              an artifact is malformed, truncated or cannot be written  exit 2
    ├── SchemeError                an unknown number format, or one that does not suit       exit 2
    ├── StatisticsError            an algorithm lacks statistics of a layer's input          exit 2
    ├── UnsupportedError           sound input that this machine or version cannot handle    exit 2
    ├── BusyError                  a server has no room for a request now: try again later   exit 2
    └── GateError                  the quality gate or the budget was not met                exit 1
"""

from __future__ import annotations

import errno

#: Longest message in characters: messages quote names from files, which can be of any length.
MAX_SENTENCE = 1000

#: Number of an operating system's error -> plain words.
_PLAIN_WORDS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EACCES: "permission denied",
    errno.ENOSPC: "no space left on the disk",
}

#: Parts of the messages of torch's and C++'s allocators.
_ALLOCATORS = ("can't allocate memory", "std::bad_alloc", "Cannot allocate memory")


def reason(cause: BaseException, limit: int = 200) -> str:
    """Return the message of another library's or the operating system's error on one line, in plain words.

    A message longer than `limit` characters is cut after a whole word. An error without a message gives its type.
    """
    if isinstance(cause, OSError) and cause.strerror:
        return _PLAIN_WORDS.get(cause.errno or 0, cause.strerror)
    return shorten(str(cause), limit) or type(cause).__name__


#: What the user reads when memory ran out despite the predictions.
OUT_OF_MEMORY = "not enough memory: close other programs, or use a smaller model or fewer tokens"


def is_out_of_memory(cause: BaseException | None) -> bool:
    """Return whether an error, or one that it was raised from, says that memory could not be allocated."""
    while cause is not None:
        words = str(cause)
        if isinstance(cause, MemoryError) or any(sign in words for sign in _ALLOCATORS):
            return True
        cause = cause.__cause__
    return False


def shorten(text: str, limit: int) -> str:
    """Return a text on one line; one longer than `limit` characters is cut after a whole word, with " ..."."""
    words = " ".join(text.split())
    if len(words) <= limit:
        return words
    start = words[: limit - 3]
    return f"{start[: start.rfind(' ')] if ' ' in start else start[:-1]} ..."


class ZeropointError(Exception):
    """Base of all deliberate errors. `exit_code` is the exit code of the command line.

    A message may quote an untrusted file: unprintable characters are shown as escapes, and the middle of a message
    longer than `MAX_SENTENCE` is cut out.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)
        if len(shown) > MAX_SENTENCE:
            shown = f"{shown[: MAX_SENTENCE * 2 // 3]} ... {shown[-MAX_SENTENCE // 4 :]}"
        super().__init__(shown)


class UsageError(ZeropointError):
    """A wrong call: an unknown option value, an output that exists, contradictory arguments."""


class CheckpointError(ZeropointError):
    """The source checkpoint is missing, truncated, unsafe (pickle) or holds NaN or inf."""


class ArtifactError(ZeropointError):
    """A quantized artifact is malformed, truncated, or could not be written."""


class SchemeError(ZeropointError):
    """A scheme string does not parse, or a scheme does not match a tensor."""


class StatisticsError(ZeropointError):
    """An algorithm lacks statistics of a layer's input. The layer falls back to `rtn`, with a warning in the report."""


class UnsupportedError(ZeropointError):
    """Valid input that this version or this machine's CPU cannot handle."""


class BusyError(ZeropointError):
    """A server has no room for a request now, or is shutting down."""


class GateError(ZeropointError):
    """The measured quality or the budget missed its bound."""

    exit_code = 1
