"""The program's standard streams, whatever they are: one place for the console's encodings, closed streams and pipes
that nobody reads.

- Standard input, output or error that is closed behaves like /dev/null.
- A character that the console's encoding lacks is shown as a question mark.
- Text from the console that is not valid in its encoding is read as UTF-8, with U+FFFD where it is not that either.
- When the reader of standard output has left (`| head`), what would be written is dropped and the command goes on, so
  that its exit code still says how the work ended. A command that streams asks `reader_left` and ends early.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from zeropoint.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

_SURROGATES = re.compile("[\ud800-\udfff]")


class _Output:
    """A text stream to the console that drops what is written after its reader has left. `name` is what an error
    calls it; without a name what cannot be written is dropped whatever the reason."""

    def __init__(self, stream: IO[str], name: str | None = None) -> None:
        self._stream = stream
        self._name = name
        self.reader_left = False

    def write(self, text: str) -> int:
        with self._guarded():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._guarded():
            self._stream.flush()

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let a stream whose writing fails write to /dev/null from now on; what is buffered would fail again when the
        interpreter ends. Raises `UsageError` unless it failed because the reader has left."""
        try:
            yield
        except BrokenPipeError:
            self._drop()
            self.reader_left = True
        except OSError as cause:
            self._drop()
            if self._name is not None:
                raise UsageError(f"cannot write to {self._name}: {cause.strerror or cause}") from cause

    def _drop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
            self._stream.flush()


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Make the standard streams behave as this module says, and put them back afterwards."""
    _open_closed_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 -- as long as the process
    output = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    errors = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    handled = _set_errors(sys.stdin, "surrogateescape"), _set_errors(output, "replace")
    sys.stdout = cast(TextIO, _Output(output, "standard output"))
    sys.stderr = cast(TextIO, _Output(errors))
    try:
        yield
    finally:
        with contextlib.suppress(UsageError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        for stream, errors_before in zip((sys.stdin, sys.stdout), handled, strict=True):
            _set_errors(stream, errors_before)


def reader_left() -> bool:
    """Return whether standard output goes to nobody any more; a command that only streams text may end then."""
    return bool(getattr(sys.stdout, "reader_left", False))


def rich_console(*, stderr: bool = False) -> Console:
    """Return rich's console on standard output, or on standard error."""
    from rich.console import Console

    return Console(stderr=stderr)


def ask(prompt: str) -> str | None:
    """Read one line from standard input, as text that any file can hold; None at its end. `prompt` is shown in a
    terminal. Raises `UsageError` when it cannot be read."""
    try:
        line = input(prompt) if sys.stdin.isatty() else _line()
    except EOFError:
        return None
    except (OSError, ValueError) as cause:
        raise UsageError(
            f"cannot read standard input: {getattr(cause, 'strerror', None) or cause}"
        ) from cause
    return None if line is None else readable(line, sys.stdin.encoding)


def readable(text: str, encoding: str | None = None) -> str:
    """Return text of a command line or a console as valid Unicode.

    Python keeps bytes that `encoding` (default: that of the command line) cannot read as surrogates: they are read as
    UTF-8, and what is not UTF-8 either becomes U+FFFD.
    """
    if text.isascii() or not _SURROGATES.search(text):
        return text
    try:
        kept = text.encode(encoding or sys.getfilesystemencoding(), "surrogateescape")
        return kept.decode("utf-8", "replace")
    except UnicodeError:  # a surrogate that stands for no byte
        return _SURROGATES.sub("\ufffd", text)


def _line() -> str | None:
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _set_errors(stream: object, errors: str | None) -> str | None:
    """Set how a stream treats what its encoding lacks, and return what it was before. What a test or a notebook puts in
    a stream's place is left alone."""
    if errors is None or not isinstance(stream, io.TextIOWrapper):
        return None
    before = stream.errors
    with contextlib.suppress(io.UnsupportedOperation):  # of an input that has been read from
        stream.reconfigure(errors=errors)
    return before


def _open_closed_descriptors() -> None:
    """Open /dev/null for each of the descriptors 0 to 2 that is closed: the next file to be opened would get its
    number, and be written into by whatever prints."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(opened, True)
