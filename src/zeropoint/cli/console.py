"""The program's standard streams: encodings, closed streams, and pipes without a reader.

- A closed standard input, output or error behaves like /dev/null.
- A character that the console's encoding lacks is written as a question mark.
- Input that is not valid in the console's encoding is read as UTF-8; bytes that are not UTF-8 become U+FFFD.
- If the reader of standard output has left (`| head`), further output is dropped. The command still runs to its end, so
  its exit code tells the result. Only commands that stream text ask `reader_left` and end early.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, TextIO, cast

from zeropoint.errors import UsageError, reason

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

#: The width for files and pipes, which have none of their own.
PIPE_WIDTH = 1000

_SURROGATES = re.compile("[\ud800-\udfff]")


class _Output:
    """A text stream that drops text after its reader has left.

    Other write errors raise `UsageError` with the stream's `name`; without a `name` they drop the text too.
    """

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
        """Redirect the stream to /dev/null after a write error.

        Buffered text would otherwise fail again when the interpreter ends. Raises `UsageError` if the stream has a name
        and the error is not a broken pipe.
        """
        try:
            yield
        except BrokenPipeError:
            self._drop()
            self.reader_left = True
        except OSError as cause:
            self._drop()
            if self._name is not None:
                raise UsageError(f"cannot write to {self._name}: {reason(cause)}") from cause

    def _drop(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
            self._stream.flush()


@contextlib.contextmanager
def streams() -> Iterator[None]:
    """Replace the standard streams as the module's docstring says, and restore them afterwards."""
    _open_closed_descriptors()
    before = sys.stdin, sys.stdout, sys.stderr
    sys.stdin = sys.stdin or open(os.devnull, encoding="utf-8")  # noqa: SIM115 -- open as long as the process
    output = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    errors = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    handlers_before = _set_errors(sys.stdin, "surrogateescape"), _set_errors(output, "replace")
    sys.stdout = cast(TextIO, _Output(output, "standard output"))
    sys.stderr = cast(TextIO, _Output(errors))
    try:
        yield
    finally:
        with contextlib.suppress(UsageError):
            sys.stdout.flush()
        sys.stderr.flush()
        sys.stdin, sys.stdout, sys.stderr = before
        for stream, handler in zip((sys.stdin, sys.stdout), handlers_before, strict=True):
            _set_errors(stream, handler)


def reader_left() -> bool:
    """Return whether the reader of standard output has left. A command that only streams text may end then."""
    return bool(getattr(sys.stdout, "reader_left", False))


def rich_console(*, stderr: bool = False) -> Console:
    """Return rich's console on standard output, or on standard error; lines in files and pipes are not broken."""
    from rich.console import Console

    console = Console(stderr=stderr)
    if not console.is_terminal:
        console.width = PIPE_WIDTH
    return console


def whole_table(*titles: str) -> Table:
    """Return a table that cuts no cell: text too long for a terminal's line goes on in the next line."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(Text(title), overflow="fold")
    return table


def ask(prompt: str) -> str | None:
    """Read one line from standard input, as valid Unicode; return None at the end of the input.

    `prompt` is shown in a terminal only. Raises `UsageError` if standard input cannot be read.
    """
    try:
        line = input(prompt) if sys.stdin.isatty() else _read_line()
    except EOFError:
        return None
    except (OSError, ValueError) as cause:
        raise UsageError(f"cannot read standard input: {reason(cause)}") from cause
    return None if line is None else readable(line, sys.stdin.encoding)


def readable(text: str, encoding: str | None = None) -> str:
    """Return text of the command line or the console as valid Unicode.

    Python stores bytes that are not valid in `encoding` (default: the command line's) as surrogates. They are decoded
    as UTF-8; bytes that are not UTF-8 become U+FFFD.
    """
    if text.isascii() or not _SURROGATES.search(text):
        return text
    try:
        data = text.encode(encoding or sys.getfilesystemencoding(), "surrogateescape")
        return data.decode("utf-8", "replace")
    except UnicodeError:  # a surrogate that does not represent a byte
        return _SURROGATES.sub("\ufffd", text)


def _read_line() -> str | None:
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def _set_errors(stream: object, errors: str | None) -> str | None:
    """Set the handler of encoding errors of a stream, and return the handler before.

    Does nothing and returns None if `errors` is None or the stream is a replacement by a test or a notebook.
    """
    if errors is None or not isinstance(stream, io.TextIOWrapper):
        return None
    before = stream.errors
    with contextlib.suppress(io.UnsupportedOperation):  # raised if input was read already
        stream.reconfigure(errors=errors)
    return before


def _open_closed_descriptors() -> None:
    """Open /dev/null on each closed descriptor from 0 to 2.

    Otherwise the next opened file would get such a descriptor, and printed text would end up in that file.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            os.set_inheritable(null, True)
