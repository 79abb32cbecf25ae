"""Text as it is generated: whole characters, stop strings, nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.runtime.streaming import TextStream


def decode(ids: Sequence[int]) -> str:
    """One token a byte, as byte-level tokenizers decode."""
    return bytes(ids).decode("utf-8", errors="replace")


def pieces(text: str | bytes, stop: Sequence[str] = ()) -> list[str]:
    stream = TextStream(decode, stop)
    data = text.encode() if isinstance(text, str) else text
    return [*(stream.push(byte) for byte in data), stream.finish()]


@pytest.mark.parametrize("text", ["plain", "café", "日本語 und 🐱🐱!", "", "a\ufffdb"])
def test_the_pieces_are_the_text_and_whole_characters(text: str) -> None:
    found = pieces(text)
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in found)


def test_an_unfinished_character_comes_at_the_end() -> None:
    assert "".join(pieces("ab🐱".encode()[:-1])) == "ab\ufffd"


def test_invalid_bytes_do_not_hold_back_what_follows() -> None:
    assert "".join(pieces(b"a\xffbc")) == "a\ufffdbc"


@given(
    st.lists(st.sampled_from([b"\xff", b"\x80", b"\xe6", "日".encode(), "🐱".encode(), b"a"]), max_size=40)
)
def test_bytes_that_are_no_text_are_not_held_back(parts: list[bytes]) -> None:
    data = b"".join(parts)
    assert "".join(pieces(data)) == decode(data)
    stream = TextStream(decode)
    shown = sum(len(stream.push(byte)) for byte in b"\xff" * 100)
    assert shown >= 95


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("one END two", ["END"], "one "),
        ("one EN", ["END"], "one EN"),
        ("one ENEND", ["END"], "one EN"),
        ("aab", ["aab"], ""),
        ("aaab", ["aab"], "a"),
        ("xyz", ["z", "yz"], "x"),
        ("日本語", ["本"], "日"),
        ("anything", [""], "anything"),
    ],
)
def test_a_stop_string_ends_the_text_before_it(text: str, stop: list[str], shown: str) -> None:
    assert "".join(pieces(text, stop)) == shown


def test_nothing_of_a_stop_string_is_shown_early() -> None:
    stream = TextStream(decode, ["\nUser:"])
    shown = "".join(stream.push(byte) for byte in b"hello\nUse")
    assert shown == "hello"
    assert not stream.stopped
    stream.push(ord("r"))
    stream.push(ord(":"))
    assert stream.stopped
    assert stream.push(ord("x")) == "" == stream.finish()


def test_random_text_and_stops_agree_with_find() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = "".join(rng.choice(list("abé"), rng.integers(0, 30)))
        stop = ["".join(rng.choice(list("abé"), rng.integers(1, 5))) for _ in range(2)]
        ends = [len(text[:at]) for at in (text.find(each) for each in stop) if at >= 0]
        # several stop strings that overlap: the one completed first counts
        completed = [(text.find(each) + len(each), text.find(each)) for each in stop if each in text]
        first = min(completed)[0] if completed else None
        allowed = {at for end, at in completed if end == first} if completed else {len(text)}
        assert len("".join(pieces(text, stop))) in allowed, (text, stop, ends)


def test_a_tokenizer_whose_text_depends_on_the_token_before() -> None:
    words = ["▁Hello", "▁wor", "ld", "▁!"]

    def spaced(ids: Sequence[int]) -> str:
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    stream = TextStream(spaced)
    assert [stream.push(i) for i in range(4)] == ["Hello", " wor", "ld", " !"]
