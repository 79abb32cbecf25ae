"""`/v1/chat/completions`: responses, streams, options, refusals."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, client_of, events, text_of, wait_until, write_tokenizer

HELLO = [{"role": "user", "content": "Hi"}]
URL = "/v1/chat/completions"


def ask(client: TestClient, **body: Any) -> Any:
    return client.post(URL, json={"messages": HELLO, **body})


def test_a_whole_response(client: TestClient) -> None:
    response = ask(client)
    assert response.status_code == 200
    data = response.json()
    assert data["object"] == "chat.completion"
    assert data["model"] == "tiny"
    assert data["choices"] == [
        {
            "index": 0,
            "finish_reason": "stop",
            "stop_reason": None,
            "message": {"role": "assistant", "content": "Hello, world!", "refusal": None, "annotations": []},
            "logprobs": None,
        }
    ]
    usage = data["usage"]
    assert usage["completion_tokens"] == 14
    assert usage["prompt_tokens_details"] == {"cached_tokens": 3}
    assert usage["total_tokens"] == usage["prompt_tokens"] + 14


def test_the_prompt_is_the_chat_template(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    ask(client, chat_template_kwargs={"mood": "glad"})
    prompt = model.tokenizer.decode(model.requests[-1].prompt)
    assert prompt == "<|im_start|>user\nHi<|im_end|>\n[glad]<|im_start|>assistant\n"


def test_a_stream_to_the_letter(client: TestClient) -> None:
    response = ask(client, stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    chunks = events(response.text)
    assert chunks[-1] == "[DONE]"
    *chunks, usage = chunks[:-1]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(chunks) == "Hello, world!"
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons[:-1] == [None] * (len(chunks) - 1)
    assert reasons[-1] == "stop"
    assert chunks[-1]["choices"][0]["delta"] == {}
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 14
    assert usage["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_without_include_usage_there_is_none(client: TestClient) -> None:
    assert all("usage" not in chunk for chunk in events(ask(client, stream=True).text)[:-1])


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_ends_the_answer(model: FakeModel, stream: bool) -> None:
    model.delay = 0.002
    with client_of(model) as client:
        response = ask(client, stop=["zzz", "wor"], stream=stream)
        if stream:
            chunks = events(response.text)[:-1]
            text, choice = text_of(chunks), chunks[-1]["choices"][0]
        else:
            choice = response.json()["choices"][0]
            text = choice["message"]["content"]
        assert text == "Hello, "
        assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "wor")
        wait_until(lambda: model.running == 0)
    assert model.cancelled == 1


def test_the_stop_text_can_be_shown(client: TestClient) -> None:
    data = ask(client, stop="wor", include_stop_str_in_output=True).json()
    assert data["choices"][0]["message"]["content"] == "Hello, wor"


def test_several_answers_have_seeds_of_their_own(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    data = ask(client, n=3, seed=5).json()
    assert [choice["index"] for choice in data["choices"]] == [0, 1, 2]
    assert [request.sampling.seed for request in model.requests[-3:]] == [5, 6, 7]
    assert data["usage"]["completion_tokens"] == 3 * 14
    assert data["usage"]["prompt_tokens"] == len(model.requests[-1].prompt)
    chunks = events(ask(client, n=2, stream=True).text)[:-1]
    assert [text_of(chunks, index) for index in range(2)] == ["Hello, world!"] * 2


def test_logprobs(client: TestClient) -> None:
    data = ask(client, logprobs=True, top_logprobs=2).json()
    content = data["choices"][0]["logprobs"]["content"]
    assert "".join(each["token"] for each in content) == "Hello, world!"
    assert content[0]["bytes"] == [72]
    assert content[0]["logprob"] == -0.5
    assert [len(each["top_logprobs"]) for each in content] == [2] * 13
    chunks = events(ask(client, logprobs=True, stream=True).text)[:-1]
    streamed = [
        entry
        for chunk in chunks
        if chunk["choices"][0]["logprobs"]
        for entry in chunk["choices"][0]["logprobs"]["content"]
    ]
    assert [each["token"] for each in streamed] == list("Hello, world!")


def test_options_reach_the_engine(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    body = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "repetition_penalty": 1.2, "seed": -3,
        "presence_penalty": 0.5, "frequency_penalty": -1, "logit_bias": {"9": -2, "7": 1.5},
        "max_completion_tokens": 5, "ignore_eos": True, "stop_token_ids": [7], "top_logprobs": None,
    }  # fmt: skip
    data = ask(client, **body).json()
    request = model.requests[-1]
    assert request.sampling.temperature == 0.5
    assert (request.sampling.top_p, request.sampling.top_k, request.sampling.min_p) == (0.9, 7, 0.1)
    assert request.sampling.repetition_penalty == 1.2
    assert (request.sampling.presence_penalty, request.sampling.frequency_penalty) == (0.5, -1)
    assert request.sampling.logit_bias == ((7, 1.5), (9, -2))
    assert request.max_new_tokens == 5
    assert request.stop_tokens == {7}
    assert data["choices"][0]["finish_reason"] == "length"
    assert data["choices"][0]["message"]["content"] == "Hello"


def test_defaults(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    ask(client, top_k=-1)
    request = model.requests[-1]
    assert request.sampling.temperature == 1
    assert request.sampling.top_k == 0
    assert request.max_new_tokens == model.max_positions - len(request.prompt)
    assert request.stop_tokens == model.tokenizer.stop_tokens()
    ask(client)
    assert model.requests[-1].sampling.seed != request.sampling.seed


def test_a_character_of_several_tokens_comes_whole(model: FakeModel) -> None:
    model.answer, model.delay = "Grüße 日本 🐱", 0.001
    with client_of(model) as client:
        chunks = events(ask(client, stream=True).text)[:-1]
    assert text_of(chunks) == model.answer
    assert not any("\ufffd" in text_of([chunk]) for chunk in chunks)


def test_special_tokens_are_shown_on_request_only(model: FakeModel) -> None:
    model.answer = "a<|im_start|>b"
    with client_of(model) as client:
        assert ask(client).json()["choices"][0]["message"]["content"] == "ab"
        shown = ask(client, skip_special_tokens=False).json()
    assert shown["choices"][0]["message"]["content"] == "a<|im_start|>b"


def test_token_ids_on_request(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    data = ask(client, return_token_ids=True).json()
    ids = model.tokenizer.encode("Hello, world!")
    assert data["choices"][0]["token_ids"] == [*ids, 259]
    assert data["prompt_token_ids"] == list(model.requests[-1].prompt)
    chunks = events(ask(client, return_token_ids=True, stream=True).text)[:-1]
    assert [i for chunk in chunks for i in chunk["choices"][0].get("token_ids", [])] == [*ids, 259]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}, 3]}, "messages[1]"),
        ({"messages": [{"role": "alien", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"n": 0}, "n"),
        ({"n": 1000}, "n"),
        ({"seed": "x"}, "seed"),
        ({"seed": 1 << 70}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream": "yes"}, "stream"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1e400}, "messages"),
        ({"max_completion_tokens": 10**6}, "messages"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"presence_penalty": 3}, "presence_penalty"),
        ({"stream_options": 1}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
)
def test_a_wrong_value_is_named(client: TestClient, body: dict[str, Any], param: str) -> None:
    if body.get("max_tokens") == 1e400:
        response = client.post(
            URL, content='{"messages": [], "max_tokens": 1e400}', headers={"content-type": "application/json"}
        )
        param_of = None
    else:
        response = ask(client, **body)
        param_of = param
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param_of
    assert set(error) == {"message", "type", "param", "code"}


def test_unknown_fields_and_nulls_are_ignored(client: TestClient) -> None:
    assert ask(client, user="me", frobnicate=[1], temperature=None, stop=None).status_code == 200


def test_an_unknown_model(client: TestClient) -> None:
    response = ask(client, model="gpt-5")
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "model_not_found"


def test_a_model_without_chat_template(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("plain")
    write_tokenizer(folder, template=None)
    with client_of(FakeModel(folder)) as client:
        response = ask(client)
    assert response.status_code == 400
    assert "/v1/completions" in response.json()["error"]["message"]


def test_a_full_queue(model: FakeModel) -> None:
    model.busy = True
    with client_of(model) as client:
        response = ask(client)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["type"] == "rate_limit_error"


@pytest.mark.parametrize("stream", [False, True])
def test_a_failing_engine(model: FakeModel, stream: bool) -> None:
    model.fails_after, model.delay = 3, 0.001
    with client_of(model) as client:
        response = ask(client, stream=stream)
    if stream:
        chunks = events(response.text)
        assert chunks[-1] == "[DONE]"
        error = chunks[-2]["error"]
        assert text_of(chunks[:-2]) == "Hel"
    else:
        assert response.status_code == 500
        error = response.json()["error"]
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


def test_a_quiet_stream_gets_comments(model: FakeModel) -> None:
    model.prompt_delay = 0.2
    with client_of(model, keep_alive_seconds=0.05) as client:
        text = ask(client, stream=True).text
    assert text.startswith(": keep-alive\n\n")
    assert text_of(events(text)[:-1]) == "Hello, world!"
