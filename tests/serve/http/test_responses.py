"""`/v1/responses`: responses, events, function calls, formats; and the OpenAPI document."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, client_of
from tests.serve.http.test_messages import CALL, events_of

URL = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {}}},
}


def ask(client: TestClient, given: Any = "Hi", **body: Any) -> Any:
    return client.post(URL, json={"input": given, **body})


def test_a_whole_response(client: TestClient) -> None:
    data = ask(client, instructions="Be kind.", metadata={"a": "b"}, temperature=0.5).json()
    assert data["object"] == "response"
    assert data["status"] == "completed"
    (message,) = data["output"]
    assert message["role"] == "assistant"
    assert message["content"] == [
        {"type": "output_text", "text": "Hello, world!", "annotations": [], "logprobs": []}
    ]
    assert data["usage"]["output_tokens"] == 14
    assert data["usage"]["input_tokens_details"] == {"cached_tokens": 3}
    assert (data["metadata"], data["temperature"]) == ({"a": "b"}, 0.5)


def test_a_stream(client: TestClient) -> None:
    events = events_of(ask(client, stream=True).text)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == ["output_text.done", "content_part.done", "output_item.done", "completed"]
    deltas = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
    assert "".join(deltas) == "Hello, world!"
    added = events[2]["item"]
    assert (added["status"], added["content"]) == ("in_progress", [])
    assert events[-1]["response"]["output"][0]["content"][0]["text"] == "Hello, world!"


@pytest.mark.parametrize("stream", [False, True])
def test_a_function_call(model: FakeModel, stream: bool) -> None:
    model.answer, model.delay = CALL, 0.0005
    with client_of(model) as client:
        response = ask(client, tools=[WEATHER, {"type": "web_search"}], stream=stream)
    data = events_of(response.text)[-1]["response"] if stream else response.json()
    message, call = data["output"]
    assert message["content"][0]["text"] == "I look."
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert json.loads(call["arguments"]) == {"city": "Bonn"}
    if stream:
        kinds = [event["type"] for event in events_of(response.text)]
        assert kinds.count("response.function_call_arguments.done") == 1
        assert kinds.count("response.output_item.added") == 2


def test_a_conversation(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Weather?"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": "rain"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
    ]
    assert ask(client, items).status_code == 200
    prompt = model.tokenizer.decode(model.requests[-1].prompt)
    assert prompt.startswith(
        "<|im_start|>user\nWeather?<|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>tool\nrain"
    )


def test_it_ends_early(client: TestClient) -> None:
    data = ask(client, max_output_tokens=2).json()
    assert data["status"] == "incomplete"
    assert data["incomplete_details"] == {"reason": "max_output_tokens"}
    assert data["output"][0]["status"] == "incomplete"


def test_logprobs(client: TestClient) -> None:
    data = ask(client, include=["message.output_text.logprobs"], top_logprobs=1).json()
    assert [each["token"] for each in data["output"][0]["content"][0]["logprobs"]] == list("Hello, world!")


def test_a_schema(model: FakeModel) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
        "additionalProperties": False,
    }
    wanted = {"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}}
    with client_of(model) as client:
        model.answer = '{"a": 1}'
        data = ask(client, text=wanted).json()
        assert data["output"][0]["content"][0]["text"] == '{"a": 1}'
        assert data["text"] == wanted
        model.answer = "text"
        assert events_of(ask(client, text=wanted, stream=True).text)[-1]["type"] == "response.failed"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"content": "x"}]}, "input[0].role"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"tools": [{"type": "function"}]}, "tools"),
    ],
)
def test_a_wrong_value_is_named(client: TestClient, body: dict[str, Any], param: str) -> None:
    response = client.post(URL, json={"input": "x", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_the_document_describes_every_route(fake_folder: Path) -> None:
    with client_of(FakeModel(fake_folder, "a"), FakeModel(fake_folder, "b"), api_keys=("k",)) as client:
        document = client.get("/openapi.json", headers={"authorization": "Bearer k"}).json()
        app: Any = client.app
        routes = {route.path.replace(":path", "") for route in app.routes}
    assert set(document["paths"]) <= routes
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"][
        "schema"
    ]
    assert chat["required"] == ["messages", "model"]
    assert chat["properties"]["model"]["enum"] == ["a", "b"]
    assert document["security"] == [{"key": []}]
