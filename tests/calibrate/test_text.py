"""Calibration text: documents, conversations, windows, and a digest that tells texts apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from zeropoint.calibrate import calibration
from zeropoint.errors import UsageError

Tiny = Callable[[str], Path]
EVALUATION = Path(__file__).parents[2] / "examples" / "data" / "eval.txt"


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint: Tiny) -> Any:
    return AutoTokenizer.from_pretrained(tiny_checkpoint("llama_tied"))


def test_the_built_in_sample_fills_the_usual_windows(tokenizer: Any) -> None:
    made = calibration(tokenizer)
    assert made.tokens.shape == (128, 512)
    assert made.to_json()["windows"] == 128
    np.testing.assert_array_equal(calibration(tokenizer).tokens, made.tokens)


def test_the_built_in_sample_is_not_evaluated_on() -> None:
    from zeropoint.calibrate.text import _read

    paragraphs = {line for line in _read(None)[0].split("\n") if len(line) > 200}
    assert len(paragraphs) > 100
    assert not paragraphs & set(EVALUATION.read_text(encoding="utf-8").split("\n"))


def test_the_stream_is_the_text(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("one two\n\nthree\n\n\nfour five\n\n\n\nsix")
    made = calibration(tokenizer, file, tokens=20, length=10)
    assert tokenizer.decode(made.tokens.ravel()) == "one two\n\nthree\n\n\nfour five"[:20]
    assert made.source == "text.txt"


def test_a_short_text_gives_one_short_window(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("abc")
    assert calibration(tokenizer, file).tokens.shape == (1, 5)


def test_conversations_are_written_as_the_model_knows_them(tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    file.write_text(json.dumps({"messages": turns}) + "\n\n" + json.dumps({"text": "plain"}) + "\n")
    plain = calibration(tokenizer, file)
    assert tokenizer.decode(plain.tokens.ravel()) == "hi\n\nyes\n\nplain\n\n"
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    told = AutoTokenizer.from_pretrained(tokenizer.name_or_path, chat_template=template)
    assert tokenizer.decode(calibration(told, file).tokens.ravel()) == "<user>hi<assistant>yesplain\n\n"


def test_seed_and_digest(tokenizer: Any) -> None:
    first, second = (calibration(tokenizer, tokens=1024, seed=seed) for seed in (0, 1))
    assert not np.array_equal(first.tokens, second.tokens)
    assert first.sha256 == second.sha256
    assert first.to_json()["tokens_sha256"] != second.to_json()["tokens_sha256"]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "fewer than two tokens"),
        ("a.txt", None, "cannot be read"),
        ("a.jsonl", '{"message": 3}', "line 1"),
        ("a.jsonl", '{"text": "x"}\n{', "line 2"),
    ],
)
def test_bad_files(name: str, content: str | None, words: str, tokenizer: Any, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UsageError, match=words):
        calibration(tokenizer, tmp_path / name)
