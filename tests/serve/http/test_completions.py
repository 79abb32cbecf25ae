"""`/v1/completions`: prompts of all kinds, echo and log-probabilities as lm-eval reads them, streams."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, events

URL = "/v1/completions"


def ask(client: TestClient, prompt: Any = "Say", **body: Any) -> Any:
    return client.post(URL, json={"prompt": prompt, **body})


def test_a_text(client: TestClient) -> None:
    data = ask(client).json()
    assert data["object"] == "text_completion"
    assert data["choices"][0]["text"] == "Hello, world!"
    assert data["choices"][0]["finish_reason"] == "stop"
    assert data["usage"]["prompt_tokens"] == 3


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([64, 65], ["ab"]),
        ([[64, 65], [66]], ["ab", "c"]),
        (["ab", [66]], ["ab", "c"]),
    ],
)
def test_prompts_are_texts_or_tokens(
    shared_client: tuple[TestClient, FakeModel], prompt: Any, prompts: list[str]
) -> None:
    client, model = shared_client
    ids = model.tokenizer.encode("abc")
    table = {64: ids[0], 65: ids[1], 66: ids[2]}
    if isinstance(prompt, list):
        prompt = [
            [table[each] for each in part] if isinstance(part, list) else table.get(part, part)
            for part in prompt
        ]
    data = ask(client, prompt, echo=True, n=2).json()
    expected = [f"{text}Hello, world!" for text in prompts for _ in range(2)]
    assert [choice["text"] for choice in data["choices"]] == expected
    assert [choice["index"] for choice in data["choices"]] == list(range(len(expected)))


def test_the_default_is_sixteen_tokens(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    ask(client)
    assert model.requests[-1].max_new_tokens == 16


def test_echo_with_logprobs_scores_the_prompt(client: TestClient) -> None:
    data = ask(client, "abc", echo=True, logprobs=1, max_tokens=1, temperature=0).json()
    logprobs = data["choices"][0]["logprobs"]
    assert logprobs["tokens"] == ["a", "b", "c", "H"]
    assert logprobs["token_logprobs"] == [None, -0.5, -0.5, -0.5]
    assert logprobs["text_offset"] == [0, 1, 2, 3]
    assert logprobs["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.5}, {"H": -0.5}]
    assert data["choices"][0]["text"] == "abcH"


def test_a_stop_token_has_a_score_like_any_other(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    for stream in (False, True):
        model.answers.append("")  # the model's only token is the one that ends the answer
        response = ask(client, "abc", echo=True, logprobs=1, max_tokens=1, stream=stream)
        chunks = events(response.text)[:-1] if stream else [response.json()]
        parts = [chunk["choices"][0]["logprobs"] for chunk in chunks]
        scores = [score for part in parts if part for score in part["token_logprobs"]]
        assert scores == [None, -0.5, -0.5, -0.5]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "abc"


def test_the_chosen_token_is_among_the_alternatives(client: TestClient) -> None:
    data = ask(client, logprobs=3, max_tokens=1).json()
    alternatives = data["choices"][0]["logprobs"]["top_logprobs"][0]
    assert alternatives["H"] == -0.5
    assert len(alternatives) == 3


def test_a_prompt_alone(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    data = ask(client, "abc", echo=True, logprobs=0, max_tokens=0).json()
    assert data["choices"][0]["text"] == "abc"
    assert data["choices"][0]["finish_reason"] == "length"
    assert len(data["choices"][0]["logprobs"]["tokens"]) == 3
    assert model.requests[-1].prompt_logprobs == 0


def test_a_stream(client: TestClient) -> None:
    chunks = events(ask(client, stream=True, echo=True, stream_options={"include_usage": True}).text)
    assert chunks[-1] == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-2]) == "SayHello, world!"
    assert chunks[-3]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-2]["choices"] == []
    assert chunks[-2]["usage"]["total_tokens"] == 17


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [260]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"suffix": "x"}, "suffix"),
    ],
)
def test_a_wrong_value_is_named(client: TestClient, body: dict[str, Any], param: str) -> None:
    response = client.post(URL, json={"prompt": "x", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_prompt_that_is_too_long(client: TestClient) -> None:
    response = ask(client, "x" * 4096)
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
