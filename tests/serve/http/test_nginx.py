"""nginx with the configuration of docs/scale.md, before two servers."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.serve.http.fake import FakeModel, wait_until
from tests.serve.http.real import REQUEST, ROOT, connect, read_all, server_of

NGINX = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
pytestmark = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
LAST = REQUEST.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)


@contextmanager
def balanced(folder: Path, ports: list[int]) -> Iterator[int]:
    """Yield the port of an nginx with the documented configuration before the servers at these ports."""
    assert NGINX is not None
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    found = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.DOTALL)
    assert found
    text = found.group(1).replace("listen 8080", f"listen 127.0.0.1:{port}")
    for address, server in zip(("10.0.0.11:8000", "10.0.0.12:8000"), ports, strict=True):
        assert address in text
        text = text.replace(address, f"127.0.0.1:{server}")
    folders = [
        f"{kind}_temp_path {folder / kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    ]
    text = text.replace("http {", "http { access_log off; " + " ".join(folders), 1)
    file = folder / "nginx.conf"
    file.write_text(f"daemon off; pid {folder / 'pid'}; error_log {folder / 'errors'};\n{text}")
    process = subprocess.Popen([NGINX, "-c", str(file)], stderr=subprocess.PIPE)
    try:
        wait_until(lambda: listens(port) or process.poll() is not None, seconds=20)
        assert process.poll() is None, process.communicate()[1]
        yield port
    finally:
        process.terminate()
        process.communicate(timeout=20)


def listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_requests_are_spread_and_streams_are_not_held_back(fake_folder: Path, tmp_path: Path) -> None:
    models = [FakeModel(fake_folder, answer="x" * 1000, delay=0.5) for _ in range(2)]
    with (
        server_of(models[0]) as (first, one),
        server_of(models[1]) as (_, two),
        balanced(tmp_path, [one, two]) as port,
        ExitStack() as open_clients,
    ):
        clients = [open_clients.enter_context(connect(port, LAST)) for _ in range(6)]
        wait_until(lambda: sum(model.running for model in models) == 6, seconds=60)
        assert [model.running for model in models] == [3, 3]
        for client in clients:
            assert b"200 OK" in client.recv(4096)
        # the first bytes came while the answers are written
        assert sum(model.running for model in models) == 6
        for model in models:
            model.delay = 0.0001
        for client in clients:
            data = read_all(client)
            assert data.count(b'"x"') >= 990
            assert b"[DONE]" in data
        # a server that shuts down answers the requests that run; new ones go to the other server
        with connect(one, LAST) as running:
            wait_until(lambda: models[0].running == 1, seconds=60)
            first.handle_exit(signal.SIGTERM, None)
            wait_until(lambda: first.config.app.state.zeropoint.draining)  # type: ignore[union-attr]
            for client in [connect(port, LAST) for _ in range(4)]:
                with client:
                    assert b"[DONE]" in read_all(client)
            assert b"[DONE]" in read_all(running)
        assert [len(model.requests) for model in models] == [4, 7]
