"""JSON from elsewhere says one thing, or it is refused; what an error quotes of it can be printed."""

from __future__ import annotations

from pathlib import Path

import pytest

from zeropoint.errors import MAX_SENTENCE, ArtifactError, CheckpointError
from zeropoint.files.json_file import load_json, parse_json


def test_plain_values_are_read() -> None:
    assert parse_json('{"a": [1, 2.5, null, "\\ud83d\\ude00"], "b": {"a": true}}') == {
        "a": [1, 2.5, None, "\U0001f600"],
        "b": {"a": True},
    }


def test_an_open_range_is_read() -> None:
    assert parse_json('{"time_step_limit": [0.0, Infinity]}') == {"time_step_limit": [0.0, float("inf")]}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "key 'c' is given twice"),
        ('{"a": 1e999}', "1e999 is too large"),
        ('{"a": Infinity}', "Infinity is not a JSON number"),
        ('{"a": [0, -Infinity]}', "Infinity is not a JSON number"),
        ('{"a": [1, 2, Infinity]}', "Infinity is not a JSON number"),
        ('{"a": [0, NaN]}', "NaN is not a JSON number"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"\\udfff": 1}', "surrogates not allowed"),
        ("[" * 65 + "]" * 65, "nested too deep"),
        ("[" * 100_000, "nested too deep"),
        ("9" * 5000, "digits"),
        ('{"a": 1} {', "Extra data"),
    ],
)
def test_what_means_nothing_or_two_things_is_refused(text: str, why: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        load_json(tmp_path / "config.json", error=CheckpointError)


def test_an_error_can_be_printed_whatever_it_quotes() -> None:
    said = str(ArtifactError("the tensor \x1b[2J\nof \ud800 \u00e9t\u00e9 is missing"))
    assert said == "the tensor \\x1b[2J\\nof \\ud800 \u00e9t\u00e9 is missing"
    long = str(ArtifactError(f"begin {'x' * 5000} end"))
    assert long.startswith("begin x")
    assert long.endswith("x end")
    assert len(long) <= MAX_SENTENCE
