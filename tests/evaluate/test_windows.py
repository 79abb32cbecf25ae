from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zeropoint.errors import UsageError
from zeropoint.evaluate.windows import EvaluationText, default_text, load_text, make_windows


def encode(text: str) -> list[int]:
    return list(text.encode())


def test_documents_are_cut_at_two_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_text("One.\n\nStill one.\n\n\nTwo.\r\n\r\n\r\nThree.\n")
    assert load_text(file).documents == ("One.\n\nStill one.", "Two.", "Three.")


def test_stream_equals_the_unsplit_text_and_remembers_documents(tmp_path: Path) -> None:
    text = "One is here.\n\n\nTwo is there.\n\n\nThree is gone now."
    file = tmp_path / "t.txt"
    file.write_text(text)
    windows = make_windows(load_text(file), encode, tokens=35, context=8)
    assert windows.tokens.shape == (5, 8)
    assert windows.scored_tokens == 35
    stream = encode(text)[:40]
    assert windows.tokens.ravel().tolist() == stream
    assert windows.documents[0, 0] == 0
    assert windows.documents.ravel()[-1] == 2
    assert (np.diff(windows.documents.ravel()) >= 0).all()


def test_special_tokens_are_left_out() -> None:
    text = EvaluationText(("aaaa", "bbbb"), "t")
    windows = make_windows(text, lambda t: [999, *t.encode()], tokens=4, context=5)
    assert 999 not in windows.tokens


def test_short_text_gives_one_short_window() -> None:
    windows = make_windows(EvaluationText(("abc",), "t"), encode, tokens=1000, context=512)
    assert windows.tokens.shape == (1, 5)


@pytest.mark.parametrize(("tokens", "context"), [(0, 8), (8, 1)])
def test_sizes_out_of_range(tokens: int, context: int) -> None:
    with pytest.raises(UsageError, match="at least 1 token"):
        make_windows(EvaluationText(("abc",), "t"), encode, tokens=tokens, context=context)


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
