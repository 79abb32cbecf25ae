"""Requests that the server refuses (keys, origins, bodies, methods, models), metrics, listings and `/tokenize`."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.http.fake import FakeModel, client_of, wait_until

CHAT = "/v1/chat/completions"
HELLO = {"messages": [{"role": "user", "content": "Hi"}]}
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "Bearer wrong"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"authorization": "bearer other"}, 200),
        ({"x-api-key": "secret"}, 200),
    ],
)
def test_keys(model: FakeModel, headers: dict[str, str], status: int) -> None:
    with client_of(model, api_keys=("secret", "other")) as client:
        response = client.post(CHAT, json=HELLO, headers=headers)
        assert client.get("/health").status_code == 200
        assert client.get("/v1/models", headers=headers).status_code == status
        assert client.get("/metrics", headers=headers).status_code == status
    assert response.status_code == status
    if status == 401:
        assert response.json()["error"]["type"] == "authentication_error"
        assert "secret" not in response.text


@pytest.mark.parametrize(
    ("origin", "origins", "status"),
    [
        ("https://evil.example", (), 403),
        ("null", (), 403),
        ("http://[", (), 403),
        ("http://127.0.0.1.evil.example", (), 403),
        ("http://localhost:3000", (), 200),
        ("http://127.0.0.1:8000", (), 200),
        ("https://good.example", ("https://good.example",), 200),
        ("https://evil.example", ("https://good.example",), 403),
        ("https://any.example", ("*",), 200),
    ],
)
def test_pages_of_other_origins(model: FakeModel, origin: str, origins: tuple[str, ...], status: int) -> None:
    with client_of(model, origins=origins) as client:
        response = client.post(CHAT, json=HELLO, headers={"origin": origin})
    assert response.status_code == status
    allowed = response.headers.get("access-control-allow-origin")
    assert (allowed is not None) == (bool(origins) and status == 200)


def test_cors_preflight(model: FakeModel) -> None:
    headers = {
        "origin": "https://good.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    with client_of(model, origins=("https://good.example",), api_keys=("k",)) as client:
        assert client.options(CHAT, headers=headers).status_code == 200
        assert client.options(CHAT, headers={**headers, "origin": "https://evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {}, 415),
        (b"{", JSON, 400),
        (b"", JSON, 400),
        (b"[]", JSON, 400),
        (b'{"messages": NaN}', JSON, 400),
        (b'{"a": 1, "a": 2}', JSON, 400),
        (b"\xff\xfe", JSON, 400),
        (b'"\\ud800"', JSON, 400),
        (b"[" * 100_000, JSON, 400),
        (b" " * 2_000_000, JSON, 413),
    ],
)
def test_bad_bodies(model: FakeModel, content: bytes, headers: dict[str, str], status: int) -> None:
    with client_of(model, max_body_bytes=1_000_000) as client:
        response = client.post(CHAT, content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_unknown_paths_and_methods(client: TestClient) -> None:
    response = client.get("/v1/nothing")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "not_found_error"
    response = client.get(CHAT)
    assert response.status_code == 405
    assert response.headers["allow"] == "POST"
    assert response.json()["error"]["message"]


def test_an_internal_error_says_nothing_of_the_inside(
    model: FakeModel, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("/home/someone/secret")

    model.submit = fail  # type: ignore[method-assign, assignment]
    with client_of(model) as client:
        response = client.post(CHAT, json=HELLO)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert "Traceback" not in response.text
    assert "secret" in caplog.text


def test_models(fake_folder: Path) -> None:
    with client_of(FakeModel(fake_folder, "a/b"), FakeModel(fake_folder, "c")) as client:
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["a/b", "c"]
        assert client.get("/v1/models/a/b").json()["id"] == "a/b"
        assert client.get("/v1/models/d").status_code == 404
        response = client.post(CHAT, json=HELLO)
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "model"
        assert client.post(CHAT, json={**HELLO, "model": "c"}).json()["model"] == "c"


def test_metrics_have_the_names_of_vllm(model: FakeModel) -> None:
    with client_of(model) as client:
        client.post(CHAT, json=HELLO)
        wait_until(lambda: model.running == 0)
        text = client.get("/metrics").text
    label = '{engine="0",model_name="tiny"}'
    for line in (
        f"vllm:num_requests_running{label} 0.0",
        f"vllm:kv_cache_usage_perc{label} 0.25",
        f"vllm:prefix_cache_hits_total{label} 4.0",
        f"vllm:generation_tokens_total{label} 14.0",
        f"vllm:time_to_first_token_seconds_count{label} 1.0",
        f"vllm:e2e_request_latency_seconds_count{label} 1.0",
        'vllm:request_success_total{engine="0",finished_reason="stop",model_name="tiny"} 1.0',
    ):
        assert line in text, line


def test_tokenize_and_back(shared_client: tuple[TestClient, FakeModel]) -> None:
    client, model = shared_client
    data = client.post("/tokenize", json={"prompt": "né", "return_token_strs": True}).json()
    assert data["tokens"] == model.tokenizer.encode("né")
    assert data["count"] == 3
    assert data["max_model_len"] == 4096
    assert client.post("/detokenize", json={"tokens": data["tokens"]}).json() == {"prompt": "né"}
    floats = [float(token) for token in data["tokens"]]  # whole numbers of JSON, too
    assert client.post("/detokenize", json={"tokens": floats}).json() == {"prompt": "né"}
    chat = client.post("/tokenize", json=HELLO).json()
    assert model.tokenizer.decode(chat["tokens"]).endswith("<|im_start|>assistant\n")
    assert client.post("/tokenize", json={}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [9999]}).status_code == 400
    assert client.post("/detokenize", json={"tokens": [1.5]}).status_code == 400


def test_draining_refuses(model: FakeModel) -> None:
    with client_of(model) as client:
        client.app.state.zeropoint.draining = True  # type: ignore[attr-defined]
        response = client.post(CHAT, json=HELLO)
        assert client.get("/health").status_code == 503
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
