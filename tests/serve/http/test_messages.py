"""`/v1/messages`: Anthropic's responses, events, tools and errors."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, client_of

URL = "/v1/messages"
WEATHER = {
    "name": "weather",
    "description": "tells",
    "input_schema": {"type": "object", "properties": {"city": {}}},
}
CALL = 'I look.<tool_call>{"name": "weather", "arguments": {"city": "Bonn"}}</tool_call>'


def ask(client: TestClient, **body: Any) -> Any:
    return client.post(URL, json={"max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}], **body})


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the events of a stream, and check that each event's name is its type."""
    out = []
    for block in filter(None, text.split("\n\n")):
        name, data = block.split("\n")
        out.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {out[-1]['type']}"
    return out


def test_a_whole_response(client: TestClient) -> None:
    data = ask(client, system="Be kind.").json()
    assert data["type"] == "message"
    assert data["content"] == [{"type": "text", "text": "Hello, world!", "citations": None}]
    assert (data["stop_reason"], data["stop_sequence"]) == ("end_turn", None)
    assert data["usage"]["cache_read_input_tokens"] == 3
    assert data["usage"]["output_tokens"] == 14


def test_a_stream(client: TestClient) -> None:
    events = events_of(ask(client, stream=True).text)
    kinds = [event["type"] for event in events]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    text = "".join(event["delta"]["text"] for event in events if event["type"] == "content_block_delta")
    assert text == "Hello, world!"
    assert events[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert events[-2]["usage"]["output_tokens"] == 14


def test_why_it_stopped(client: TestClient) -> None:
    data = ask(client, max_tokens=2).json()
    assert data["stop_reason"] == "max_tokens"
    data = ask(client, stop_sequences=["wor"]).json()
    assert (data["stop_reason"], data["stop_sequence"]) == ("stop_sequence", "wor")


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool(model: FakeModel, stream: bool) -> None:
    model.answer, model.delay = CALL, 0.0005
    with client_of(model) as client:
        response = ask(client, tools=[WEATHER, {"type": "bash_1", "name": "bash"}], stream=stream)
        prompt = model.tokenizer.decode(model.requests[-1].prompt)
    assert "bash" not in prompt
    if not stream:
        text, tool = response.json()["content"]
        assert (text["type"], text["text"]) == ("text", "I look.")
        assert (tool["type"], tool["name"], tool["input"]) == ("tool_use", "weather", {"city": "Bonn"})
        assert response.json()["stop_reason"] == "tool_use"
        return
    events = events_of(response.text)
    starts = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert [start["type"] for start in starts] == ["text", "tool_use"]
    given = "".join(
        event["delta"]["partial_json"]
        for event in events
        if event["type"] == "content_block_delta" and event["delta"]["type"] == "input_json_delta"
    )
    assert json.loads(given) == {"city": "Bonn"}
    assert events[-2]["delta"]["stop_reason"] == "tool_use"


def test_results_of_tools_reach_the_template(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
        {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "B"}}],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "rain"}]},
                {"type": "text", "text": "And?"},
            ],
        },
    ]
    assert ask(client, messages=messages).status_code == 200
    prompt = model.tokenizer.decode(model.requests[-1].prompt)
    assert "<|im_start|>tool\nrain<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>" in prompt
    count = client.post(f"{URL}/count_tokens", json={"messages": messages}).json()
    assert count == {"input_tokens": len(model.requests[-1].prompt)}


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "type"),
        ({"temperature": "x"}, "temperature"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice"),
    ],
)
def test_errors_have_the_shape_of_anthropic(client: TestClient, body: dict[str, Any], words: str) -> None:
    response = ask(client, **body)
    assert response.status_code == 400
    assert response.json()["type"] == "error"
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert words in response.json()["error"]["message"]


def test_an_error_inside_a_stream(model: FakeModel) -> None:
    model.fails_after, model.delay = 2, 0.001
    with client_of(model) as client:
        assert ask(client, model="other").json()["error"]["type"] == "not_found_error"
        last = events_of(ask(client, stream=True).text)[-1]
    assert last["type"] == "error"
    assert last["error"]["type"] == "api_error"
