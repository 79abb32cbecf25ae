from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zeropoint.errors import UsageError
from zeropoint.evaluate.quality.windows import EvaluationText, default_text, load_text, make_windows


class Bytes:
    """A tokenizer of bytes that puts `prefix` before a text."""

    def __init__(self, *prefix: int) -> None:
        self.prefix = list(prefix)

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_prompt(self, text: str) -> list[int]:
        return self.prefix + self.encode(text)


def test_documents_are_cut_at_two_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("One.\n\nStill one.\n\n\nTwo.\r\n\r\n\r\nThree.\n")
    assert load_text(file).documents == ("One.\n\nStill one.", "Two.", "Three.")


def test_stream_equals_the_unsplit_text_and_remembers_documents(tmp_path: Path) -> None:
    text = "One is here.\n\n\nTwo is there.\n\n\nThree is gone now."
    file = tmp_path / "t.txt"
    file.write_text(text)
    windows = make_windows(load_text(file), Bytes(), tokens=35, context=8)
    assert windows.tokens.shape == (5, 8)
    assert windows.scored_tokens == 35
    stream = Bytes().encode(text)[:40]
    assert windows.tokens.ravel().tolist() == stream
    assert windows.documents[0, 0] == 0
    assert windows.documents.ravel()[-1] == 2
    assert (np.diff(windows.documents.ravel()) >= 0).all()


def test_each_window_begins_with_bos_where_the_tokenizer_puts_one() -> None:
    text = EvaluationText(("aaaa", "bbbb"), "t")
    plain = make_windows(text, Bytes(), tokens=8, context=5)
    windows = make_windows(text, Bytes(999), tokens=8, context=5)
    assert windows.tokens.shape == (2, 5)
    assert windows.scored_tokens == plain.scored_tokens == 8
    assert (windows.tokens[:, 0] == 999).all()
    assert 999 not in windows.tokens[:, 1:]  # BOS is read, and never predicted
    assert windows.tokens[:, 1:].ravel().tolist() == list(b"aaaa\n\n\nb")
    assert windows.documents[:, 1:].ravel().tolist() == [0] * 6 + [1] * 2
    short = make_windows(EvaluationText(("ab",), "t"), Bytes(999), tokens=100, context=50)
    assert short.tokens.tolist() == [[999, *b"ab\n\n"]]


def test_short_text_gives_one_short_window() -> None:
    windows = make_windows(EvaluationText(("abc",), "t"), Bytes(), tokens=1000, context=512)
    assert windows.tokens.shape == (1, 5)


@pytest.mark.parametrize(("tokens", "context"), [(0, 8), (8, 1)])
def test_sizes_out_of_range(tokens: int, context: int) -> None:
    with pytest.raises(UsageError, match="at least 1 token"):
        make_windows(EvaluationText(("abc",), "t"), Bytes(), tokens=tokens, context=context)


def test_unreadable_and_empty_texts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        load_text(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n\n\n")
    with pytest.raises(UsageError, match="is empty"):
        load_text(tmp_path / "empty.txt")


def test_default_text_is_prose_enough_for_the_default_size() -> None:
    text = default_text()
    assert text == load_text(None)
    assert len(text.documents) >= 40
    assert sum(map(len, text.documents)) > 60_000
    assert not any("::=" in d or "\n====" in d for d in text.documents)
    paragraphs = [p for d in text.documents for p in d.split("\n\n")]
    assert len(paragraphs) == len(set(paragraphs))
