"""Tools and structured answers in chat: what the template gets, what clients get, what grammars allow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, client_of, events, text_of

URL = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "tells the weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = 'I look.<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'


def ask(client: TestClient, **body: Any) -> Any:
    return client.post(URL, json={"messages": HELLO, **body})


def test_a_call(model: FakeModel) -> None:
    model.answer = CALL
    with client_of(model) as client:
        choice = ask(client, tools=[WEATHER, {"type": "web_search"}]).json()["choices"][0]
        prompt = model.tokenizer.decode(model.requests[-1].prompt)
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "I look."
    (call,) = choice["message"]["tool_calls"]
    assert call["type"] == "function"
    assert call["id"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert prompt.startswith('TOOLS <tool_call> [{"type": "function", "function": {"name": "weather"')
    assert "web_search" not in prompt


def test_a_streamed_call(model: FakeModel) -> None:
    model.answer, model.delay = CALL, 0.0005
    with client_of(model) as client:
        chunks = events(ask(client, tools=[WEATHER], stream=True).text)[:-1]
    assert text_of(chunks) == "I look."
    parts = [part for chunk in chunks for part in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert parts[0]["function"]["name"] == "weather"
    assert parts[0]["id"]
    assert all("name" not in part["function"] for part in parts[1:])
    assert len(parts) > 3
    assert "".join(part["function"]["arguments"] for part in parts) == '{"city": "Bonn"}'
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_without_tools_calls_are_text(model: FakeModel) -> None:
    model.answer = CALL
    with client_of(model) as client:
        for body in (
            {},
            {"tools": []},
            {"tools": [WEATHER], "tool_choice": "none"},
            {"tools": [{"type": "other"}]},
        ):
            message = ask(client, **body).json()["choices"][0]["message"]
            assert message["content"] == CALL
            assert "tool_calls" not in message


@pytest.mark.parametrize(
    ("choice", "reason"),
    [("required", "tool_calls"), ({"type": "function", "function": {"name": "weather"}}, "stop")],
)
def test_a_call_can_be_forced(model: FakeModel, choice: Any, reason: str) -> None:
    model.answer = '{"name": "weather", "arguments": {"city": "Bonn"}}'
    with client_of(model) as client:
        answer = ask(client, tools=[WEATHER], tool_choice=choice).json()["choices"][0]
        assert answer["finish_reason"] == reason
        assert answer["message"]["content"] is None
        assert answer["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Bonn"}'
        model.answer = "I would rather not."
        assert (
            ask(client, tools=[WEATHER], tool_choice=choice).status_code == 500
        )  # the fake engine cannot obey


def test_a_conversation_with_calls_reaches_the_template(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, _ = shared_client
    calls = [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bonn"}'}}
    ]
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "1", "content": "rain"},
    ]
    data = client.post("/tokenize", json={"messages": messages, "return_token_strs": True}).json()
    prompt = "".join(data["token_strs"])
    assert "<|im_start|>system\nBe kind.<|im_end|>" in prompt
    assert "<|im_start|>tool\nrain<|im_end|>" in prompt


@pytest.mark.parametrize(
    ("choice", "tools"),
    [("required", []), ({"type": "function", "function": {"name": "x"}}, [WEATHER]), ("maybe", [WEATHER])],
)
def test_a_choice_that_does_not_suit(client: TestClient, choice: Any, tools: list[Any]) -> None:
    response = ask(client, tools=tools, tool_choice=choice)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tool_choice"


PERSON = {
    "type": "object",
    "properties": {"age": {"type": "integer"}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("body", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"a": [1, "x"]}', "[1]"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "p", "schema": PERSON, "strict": True},
                }
            },
            '{"age": 7}',
            '{"age": "x"}',
        ),
        ({"guided_json": PERSON}, '{"age": 7}', "{}"),
        ({"structured_outputs": {"json": json.dumps(PERSON)}}, '{"age":7}', "7"),
        ({"guided_choice": ["yes", 'no "x"']}, 'no "x"', "maybe"),
        ({"guided_regex": r"\d{3}-[a-z]+"}, "123-abc", "12-abc"),
        ({"guided_grammar": 'start: "a"+ "b"'}, "aaab", "ba"),
        ({"guided_grammar": 'root ::= "a" | "b"'}, "b", "c"),
    ],
)
def test_structured_answers(model: FakeModel, body: dict[str, Any], good: str, bad: str) -> None:
    with client_of(model) as client:
        model.answer = good
        response = ask(client, n=2, **body)
        assert [each["message"]["content"] for each in response.json()["choices"]] == [good, good]
        model.answer = bad
        assert (
            ask(client, **body).status_code == 500
        )  # the fake engine fails where a real one would choose another token


@pytest.mark.parametrize(
    "body",
    [
        {"guided_regex": "("},
        {"guided_grammar": "start: nothing"},
        {"guided_json": {"type": "banana"}},
        {"guided_json": "{"},
        {"guided_regex": "a", "guided_choice": ["b"]},
        {"guided_regex": "a", "response_format": {"type": "json_object"}},
        {"guided_choice": []},
    ],
)
def test_bad_grammars(client: TestClient, body: dict[str, Any]) -> None:
    response = ask(client, **body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"
