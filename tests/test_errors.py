"""Messages of other libraries and of the operating system, in plain words and cut between words."""

from __future__ import annotations

import pytest

from zeropoint.errors import reason, shorten


@pytest.mark.parametrize(
    ("cause", "words"),
    [
        (FileNotFoundError(2, "No such file or directory", "a"), "there is no such file or folder"),
        (IsADirectoryError(21, "Is a directory", "a"), "it is a folder, not a file"),
        (OSError(28, "No space left on device", "a"), "no space left on the disk"),
        (OSError(5, "Input/output error", "a"), "Input/output error"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(), "ValueError"),
    ],
)
def test_reasons(cause: Exception, words: str) -> None:
    assert reason(cause) == words


def test_long_messages_end_after_a_word() -> None:
    text = "We couldn't connect to the hub " * 9
    cut = reason(ValueError(text))
    assert len(cut) <= 200
    assert cut.endswith(" ...")
    assert text.startswith(cut.removesuffix(" ...") + " ")
    assert shorten("x" * 50, 20) == "x" * 16 + " ..."
    assert shorten("just long enough", 16) == "just long enough"
