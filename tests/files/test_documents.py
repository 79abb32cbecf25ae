"""Text files: encodings, byte order marks, line ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropoint.errors import UsageError
from zeropoint.files import documents


@pytest.mark.parametrize(
    "data", [b"one\ntwo", b"one\r\ntwo", b"\xef\xbb\xbfone\ntwo", b"\xef\xbb\xbfone\r\ntwo"]
)
def test_marks_and_line_ends_are_no_text(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert documents.read_text(tmp_path / "a", "the text") == "one\ntwo"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("caf\u00e9".encode("latin-1"), r"byte 3 \(0xe9\) is not UTF-8"),
        (b"\xef\xbb\xbfab\xff", r"byte 5 \(0xff\)"),
        ("text".encode("utf-16"), "it is UTF-16"),
        ("text".encode("utf-32"), "it is UTF-32"),
    ],
)
def test_another_encoding_is_named(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UsageError, match=rf"the text .*a\.txt cannot be read: .*{words}"):
        documents.read_text(tmp_path / "a.txt", "the text")
    with pytest.raises(UsageError, match="cannot be read"):
        documents.read_text(tmp_path, "the text")
