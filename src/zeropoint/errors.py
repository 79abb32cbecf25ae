"""Every error Zeropoint raises on purpose. One clear sentence: what is wrong, where, what to do.

::

    ZeropointError                 base; the command line prints it without a traceback
    ├── UsageError                 the call itself is wrong (unknown format, output exists)  exit 2
    ├── CheckpointError            the source model cannot be read or is not sound           exit 2
    ├── ArtifactError              an artifact is malformed, truncated or cannot be written  exit 2
    ├── SchemeError                a number format that does not exist or does not fit       exit 2
    ├── StatisticsError            calibration does not tell an algorithm what it needs      exit 2
    ├── UnsupportedError           sound input that this machine or version cannot handle    exit 2
    └── GateError                  the quality gate or the budget was not met                exit 1
"""

from __future__ import annotations

#: Characters of a sentence at most; what a damaged file calls itself may be of any length.
MAX_SENTENCE = 1000


class ZeropointError(Exception):
    """Base of all deliberate errors. `exit_code` is what the command line returns.

    A sentence may quote a file from elsewhere: what cannot be printed, or would steer a terminal, is shown as an
    escape, and of a sentence too long the middle is left out.
    """

    exit_code = 2

    def __init__(self, sentence: str) -> None:
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in sentence)
        if len(shown) > MAX_SENTENCE:
            shown = f"{shown[: MAX_SENTENCE * 2 // 3]} ... {shown[-MAX_SENTENCE // 4 :]}"
        super().__init__(shown)


class UsageError(ZeropointError):
    """The call is wrong: an unknown option value, an output that exists, a contradiction."""


class CheckpointError(ZeropointError):
    """The source checkpoint is missing, truncated, unsafe (pickle) or holds NaN or inf."""


class ArtifactError(ZeropointError):
    """A quantized artifact is malformed, truncated, or could not be written."""


class SchemeError(ZeropointError):
    """A scheme string does not parse, or a scheme does not fit the tensor it was given."""


class StatisticsError(ZeropointError):
    """An algorithm was not told enough of a layer's input; the layer falls back to `rtn`, and the report says so."""


class UnsupportedError(ZeropointError):
    """Sound input that this version, or this machine's CPU, cannot handle."""


class GateError(ZeropointError):
    """The measured quality or the budget missed its bound."""

    exit_code = 1
