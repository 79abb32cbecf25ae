"""A real server of a fake model, and clients that are sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.serve.http.fake import FakeModel, FakeModels
from zeropoint.serve.http.app import make_app
from zeropoint.serve.http.server import Server, configure, listen
from zeropoint.serve.http.state import Settings

ROOT = Path(__file__).resolve().parents[3]
BODY = json.dumps({"messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n" % len(BODY)
) + BODY


@contextmanager
def server_of(model: FakeModel, *, drain_seconds: float = 5, **settings: Any) -> Iterator[tuple[Server, int]]:
    """Yield a server in a thread, and its port."""
    chosen = Settings(**settings)
    models = FakeModels({model.name: model})
    ready = threading.Event()
    with listen("127.0.0.1", 0) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        server = Server(configure(make_app(models, chosen), chosen), drain_seconds, ready.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]})
        thread.start()
        assert ready.wait(10)
        try:
            yield server, sock.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)
            assert not thread.is_alive()


def connect(port: int, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(("127.0.0.1", port), timeout=10)
    client.sendall(data)
    return client


def read_all(client: socket.socket) -> bytes:
    """Return what comes until the server closes the connection."""
    data = b""
    while part := client.recv(1 << 16):
        data += part
    return data
