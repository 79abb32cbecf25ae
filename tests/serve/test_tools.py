"""Tool calls in answers of several model families, parsed whole and in pieces of any size."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.serve.tools import HERMES, JSON, LLAMA, MISTRAL, ToolParser, format_of

NAMES = ("weather", "time")
Calls = list[tuple[str, str]]

#: style, answer, plain text, calls
CASES: list[tuple[str, str, str, Calls]] = [
    (HERMES, "Hello <b>you</b>", "Hello <b>you</b>", []),
    (
        HERMES,
        'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "n": [1, {"a": "}"}]}}\n'
        "</tool_call>",
        "Let me see.\n",
        [("weather", '{"city": "Köln", "n": [1, {"a": "}"}]}')],
    ),
    (
        HERMES,
        '<tool_call>{"arguments": {"a": 1}, "name": "time"}</tool_call>\n'
        '<tool_call>{"name": "x", "arguments": {}}</tool_call>',
        "",
        [("time", '{"a": 1}'), ("x", "{}")],
    ),
    (HERMES, '<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
    (
        HERMES,
        '<tool_call>{"name": "time", "arguments" :\n {"a": [ 1 ]} \n }</tool_call>',
        "",
        [("time", '{"a": [ 1 ]}')],
    ),
    (
        HERMES,
        '<tool_call>{"name": "time", "arguments": "{\\"a\\": 1}"}</tool_call>',
        "",
        [("time", '{"a": 1}')],
    ),
    (HERMES, "<tool_call>not JSON</tool_call>", "not JSON</tool_call>", []),
    (HERMES, "2 < 3 and <tool", "2 < 3 and <tool", []),
    (
        MISTRAL,
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "A"}}, {"name": "time", "arguments": {}}]',
        "",
        [("weather", '{"city": "A"}'), ("time", "{}")],
    ),
    (MISTRAL, '[TOOL_CALLS]weather[ARGS]{"city": "A"}', "", [("weather", '{"city": "A"}')]),
    (
        MISTRAL,
        '[TOOL_CALLS]weather{"city": "A"}[TOOL_CALLS]time[CALL_ID]abc[ARGS]{}',
        "",
        [("weather", '{"city": "A"}'), ("time", "{}")],
    ),
    (LLAMA, '{"name": "weather", "parameters": {"city": "A"}}', "", [("weather", '{"city": "A"}')]),
    (
        LLAMA,
        '<|python_tag|>{"name": "weather", "parameters": {}}; {"name": "time", "parameters": {"z": null}}',
        "",
        [("weather", "{}"), ("time", '{"z": null}')],
    ),
    (LLAMA, "The name is {x}.", "The name is {x}.", []),
    (JSON, '{"answer": 42}', '{"answer": 42}', []),
    (JSON, '{"name": "Ada", "arguments": {}}', '{"name": "Ada", "arguments": {}}', []),
    (JSON, '[{"name": "time", "arguments": {"a": 1.5e3}}]', "", [("time", '{"a": 1.5e3}')]),
    (JSON, '{"name": "ti', '{"name": "ti', []),
]


def parse(style: str, pieces: list[str]) -> tuple[str, Calls]:
    """Return the text and the calls of an answer that comes in pieces."""
    parser = ToolParser(style, NAMES)
    text, calls = "", list[tuple[str, str]]()
    for part in [*(parser.push(piece) for piece in pieces), (parser.finish(), [])]:
        text += part[0]
        for call in part[1]:
            if call.id is not None:
                assert call.index == len(calls)
                calls.append((call.name or "", call.arguments))
            else:
                calls[call.index] = (calls[call.index][0], calls[call.index][1] + call.arguments)
    return text, calls


@pytest.mark.parametrize(("style", "answer", "text", "calls"), CASES)
def test_an_answer_whole_and_by_characters(style: str, answer: str, text: str, calls: Calls) -> None:
    for pieces in ([answer], list(answer)):
        found_text, found_calls = parse(style, pieces)
        assert found_calls == calls
        assert found_text.strip() == text.strip()
        assert all(json.loads(arguments) is not None for _, arguments in found_calls)


@given(st.sampled_from(CASES), st.data())
def test_the_size_of_the_pieces_does_not_matter(
    case: tuple[str, str, str, Calls], data: st.DataObject
) -> None:
    style, answer, _, _ = case
    cuts = sorted(data.draw(st.sets(st.integers(1, max(len(answer) - 1, 1)))))
    pieces = [answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True)]
    assert parse(style, pieces) == parse(style, [answer])


_SCRAPS = (
    *(
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "[ARGS]",
        '"name"',
        '"time"',
        '"arguments"',
    ),
    *'{}[]:,; a\\"',
)


@given(st.sampled_from((HERMES, MISTRAL, LLAMA, JSON)), st.lists(st.sampled_from(_SCRAPS), max_size=30))
def test_any_text_is_parsed(style: str, pieces: list[str]) -> None:
    parse(style, pieces)


def test_arguments_come_in_fragments() -> None:
    parser = ToolParser(HERMES, NAMES)
    parser.push('<tool_call>{"name": "time", "arguments": {"zo')
    _, parts = parser.push('ne": "C')
    assert [part.arguments for part in parts] == ['ne": "C']


@pytest.mark.parametrize(
    ("template", "style"),
    [
        ("... <tool_call> ...", HERMES),
        ("[TOOL_CALLS]", MISTRAL),
        ("<|python_tag|>", LLAMA),
        ("{{ messages }}", JSON),
        (None, JSON),
    ],
)
def test_the_template_shows_the_style(template: str | None, style: str) -> None:
    assert format_of(template) == style
