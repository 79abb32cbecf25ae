"""A real server: slow, silent and dropped clients, the limit of connections, and signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.serve.http.fake import FakeModel, wait_until
from tests.serve.http.real import BODY, REQUEST, ROOT, connect, read_all, server_of
from zeropoint.errors import UsageError
from zeropoint.serve.http.server import listen


def test_slow_headers_and_bodies(model: FakeModel) -> None:
    with server_of(model, header_seconds=0.2, body_seconds=0.2) as (_, port):
        with connect(port, REQUEST[:40]) as slow_headers, connect(port, REQUEST[:-5]) as slow_body:
            assert b"408 Request Timeout" in read_all(slow_headers)
            answer = read_all(slow_body)
            assert b"408 Request Timeout" in answer
            assert b'"error"' in answer
        with connect(port, b"this is not HTTP\r\n\r\n") as garbage:
            assert b"400 Bad Request\r\ncontent-type: application/json" in read_all(garbage)
    assert not model.requests


def test_a_client_that_leaves_frees_its_slot(model: FakeModel) -> None:
    model.answer, model.delay = "x" * 1000, 0.01
    with server_of(model) as (_, port):
        with connect(port, REQUEST) as client:
            assert b"200 OK" in client.recv(4096)
        wait_until(lambda: model.cancelled == 1 and model.running == 0)
        whole = REQUEST.replace(b'"stream": true', b'"stream":false')
        with connect(port, whole):
            wait_until(lambda: model.running == 1)
        wait_until(lambda: model.cancelled == 2 and model.running == 0)


def test_a_client_that_does_not_read_is_cut(model: FakeModel) -> None:
    model.answer = "x" * 2000
    asked = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "n": 2, "logprobs": True}
    body = json.dumps(asked).encode()
    head = REQUEST[: -len(BODY)].replace(str(len(BODY)).encode(), str(len(body)).encode())
    with server_of(model, send_seconds=0.3) as (server, port), socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", port))
        client.sendall(head + body)
        wait_until(lambda: len(model.requests) == 2)
        wait_until(lambda: not server.server_state.connections, seconds=20)


def test_too_many_connections(model: FakeModel) -> None:
    with server_of(model, max_connections=2) as (_, port):
        with connect(port), connect(port):
            time.sleep(0.1)
            with connect(port) as third:
                answer = read_all(third)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer


def test_draining_finishes_streams_and_refuses_new_requests(model: FakeModel) -> None:
    model.answer, model.delay = "x" * 100, 0.01
    with server_of(model) as (server, port), connect(port, REQUEST) as running:
        wait_until(lambda: model.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        time.sleep(0.1)
        with connect(port, REQUEST) as late:
            assert b"503 Service Unavailable" in late.recv(4096)
        data = read_all(running)
        assert data.count(b"x") >= 100
        assert b"[DONE]" in data
        wait_until(lambda: server.should_exit)


def test_draining_ends_in_time(model: FakeModel) -> None:
    model.answer, model.delay = "x" * 10_000, 0.01
    model.max_positions = 20_000
    with server_of(model, drain_seconds=0.2) as (server, port), connect(port, REQUEST) as running:
        wait_until(lambda: model.running == 1)
        server.handle_exit(signal.SIGTERM, None)
        data = read_all(running)
        assert b"shutting_down" in data


def test_an_address_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as sock, pytest.raises(UsageError, match="--port"):
        listen("127.0.0.1", sock.getsockname()[1])
    with pytest.raises(UsageError, match="--host"):
        listen("no such host", 0)


def test_no_torch() -> None:
    code = (
        "import sys, zeropoint.serve.http.app, zeropoint.serve.http.server\n"
        "assert not {'torch', 'transformers', 'rich'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert (
        subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False).returncode == 0
    )
