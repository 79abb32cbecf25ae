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


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_lines_of_jsonl_end_at_line_feeds_alone(
    character: str, mark: bytes, tokenizer: Any, tmp_path: Path
) -> None:
    text, file = f"one{character}two", tmp_path / "a.jsonl"
    record = (
        json.dumps({"text": text}, ensure_ascii=False) if character > "\x1f" else json.dumps({"text": text})
    )
    file.write_bytes(mark + record.encode() + b'\r\n{"text": "three"}\r\n')
    read = tokenizer.decode(calibration(tokenizer, file).tokens.ravel())
    assert read == f"{text}\n\nthree\n\n"


@pytest.mark.parametrize(
    "record",
    [
        {"text": None},
        {"text": ""},
        {"messages": []},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "user"}, {"role": "assistant", "content": ""}]},
    ],
)
def test_records_without_text_are_passed_over(record: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps(record) + "\n" + json.dumps({"text": "some text"}))
    assert tokenizer.decode(calibration(tokenizer, file).tokens.ravel()) == "some text\n\n"


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (None, "one\ntwo\n\n"),
        ("{% for m in messages %}[{{ m['content'] }}]{% endfor %}", "[one\ntwo]"),
        ("{% for m in messages %}{{ '[' + m['content'] | trim + ']' }}{% endfor %}", "[one\ntwo]"),
        (
            "{% for m in messages %}{% if m.content is string %}no{% else %}{% for p in m.content %}{{ p.text }},"
            "{% endfor %}{% endif %}{% endfor %}",
            "one,two,",
        ),
    ],
)
def test_parts_are_read_as_their_text(
    template: str | None, written: str, tokenizer: Any, tmp_path: Path
) -> None:
    told = AutoTokenizer.from_pretrained(tokenizer.name_or_path, chat_template=template)
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    assert told.decode(calibration(told, file).tokens.ravel()) == written
    parts[1] = {"type": "image_url", "image_url": "x"}
    file.write_text(json.dumps({"messages": [{"role": "user", "content": parts}]}))
    with pytest.raises(UsageError, match=r"line 1, .*part of type 'image_url'"):
        calibration(told, file)


def test_windows_and_documents_begin_with_bos(tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers import processors

    told = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    told.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 256)]
    )
    file = tmp_path / "a.txt"
    file.write_text("0123456789\n\n\nab\n\n\ncd")
    rows = [told.decode(row) for row in calibration(told, file, tokens=40, length=6).tokens]
    assert rows == ["<s>01234", "<s>56789", "<s>\n\n<s>\na", "<s>b\n\n<s>\n"]
