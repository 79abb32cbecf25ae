"""The clients of `soak.py`: honest, slow and deaf ones, ones that leave, and ones that send garbage.

`python soak_clients.py PORT MODEL` runs honest clients until the process is killed, or for five minutes.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from http_client import head, read_body, read_head
from soak_requests import Asked, comparable, encoded, joined, requests

#: Seconds after which a request without an answer counts as lost.
PATIENCE = 300.0
#: The size of the bodies that are too large. The server is started with half of it as `--max-body`.
HUGE = 2 << 20

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter


@dataclass
class Tally:
    """What happened: counts by a word, and descriptions of everything that must not happen."""

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    stood_still: float = 0.0  # the time of `time.monotonic` until which this process did not run

    def fault(self, text: str) -> None:
        self.counts["faults"] += 1
        if len(self.faults) < 50:
            self.faults.append(text[:2000])
            print(f"FAULT: {text[:2000]}", file=sys.stderr, flush=True)

    def lost(self, text: str, since: float) -> None:
        """Note a request of the time `since` without an answer: a fault, unless all processes stood still meanwhile."""
        if since < self.stood_still:
            self.counts["lost while this machine stood still"] += 1
        else:
            self.fault(text)

    async def watch(self) -> None:
        """Note when this process does not run for seconds: the server cuts clients that are silent for so long."""
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.2)
            if time.monotonic() - before > 2:
                self.stood_still = time.monotonic()
                print(f"this process stood still for {self.stood_still - before:.1f} s", flush=True)


@dataclass
class Client:
    """One client. `address`: its own address of this machine, so that the server tells the clients apart."""

    port: int
    tally: Tally
    rng: random.Random
    asked: list[tuple[Asked, Any]]
    address: str = "127.0.0.1"
    buffer: int | None = None

    async def connect(self) -> tuple[Reader, Writer]:
        sock = socket.socket()
        sock.setblocking(False)
        if self.buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer)
        sock.bind((self.address, 0))
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock, limit=self.buffer or 1 << 20)


def answer_of(asked: Asked, body: bytes, kind: str) -> Any:
    """Return the comparable answer of a body. Raises `ValueError` if the body is not a whole answer."""
    if not kind.startswith("text/event-stream"):
        return comparable(asked.path, json.loads(body))
    lines = [line for line in body.decode().split("\n") if line.startswith("data: ")]
    if asked.path in ("/v1/completions", "/v1/chat/completions") and lines.pop() != "data: [DONE]":
        raise ValueError(f"the stream does not end with [DONE]: {body[-300:]!r}")
    events = [json.loads(line[6:]) for line in lines]
    if "error" in events[-1] or events[-1].get("type") == "response.failed":
        raise ValueError("the stream ends with an error")
    return comparable(asked.path, joined(asked.path, events))


async def ask(client: Client, pause: float = 0.0) -> None:
    """Send requests over one connection and compare each answer with the answer alone."""
    reader, writer = await client.connect()
    begin = time.monotonic()
    try:
        for _ in range(client.rng.randint(1, 4)):
            asked, alone = client.rng.choice(client.asked)
            body = encoded(asked, stream=client.rng.random() < 0.6)
            while True:
                begin = time.monotonic()
                writer.write(head(asked.path, len(body)) + body)
                async with asyncio.timeout(PATIENCE):
                    status, headers = await read_head(reader)
                    content = await read_body(reader, headers, pause)
                if status != 429:
                    break
                client.tally.counts["asked again after 429"] += 1
                await asyncio.sleep(float(headers["retry-after"]) * client.rng.uniform(1, 3))
            check(client.tally, asked, alone, status, headers, content)
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        client.tally.lost(f"a request is lost: {type(error).__name__} {error}", begin)
    finally:
        writer.close()


def check(
    tally: Tally, asked: Asked, alone: Any, status: int, headers: dict[str, str], content: bytes
) -> None:
    """Compare an answer with the answer alone, unless that is None (not known)."""
    try:
        if status != 200:
            raise ValueError(f"status {status}")
        found = answer_of(asked, content, headers["content-type"])
    except (ValueError, KeyError, IndexError) as error:
        tally.fault(f"no answer ({type(error).__name__}: {error}) to {asked}: {content[:500]!r}")
        return
    if alone is None or found == alone:
        tally.counts["right answers"] += 1
    else:
        tally.fault(f"wrong answer to {asked}:\n  alone: {alone}\n  now:   {found}")


async def slow(client: Client) -> None:
    """Read answers slowly, through a small buffer."""
    client.buffer = 4096
    await ask(client, client.rng.uniform(0.05, 0.3))


async def deaf(client: Client) -> None:
    """Read nothing until the server has given up, then check that the answer was cut (or fits into the buffers)."""
    client.buffer = 4096
    reader, writer = await client.connect()
    # a long answer for little work: many alternatives of each token of the prompt
    long = {"prompt": "alpha beta gamma delta " * 40, "echo": True, "logprobs": 20, "max_tokens": 1, "n": 2}
    body = json.dumps(long).encode()
    writer.write(head("/v1/completions", len(body)) + body)
    try:
        await asyncio.sleep(client.rng.uniform(20, 30))
        async with asyncio.timeout(PATIENCE):
            _, headers = await read_head(reader)
            await read_body(reader, headers)
        client.tally.counts["deaf clients: answered"] += 1
    except (OSError, asyncio.IncompleteReadError):
        client.tally.counts["deaf clients: cut"] += 1
    except TimeoutError:
        client.tally.fault("a deaf client keeps its connection")
    finally:
        writer.close()


async def leave(client: Client) -> None:
    """Send a request, read a part of the answer or nothing, and leave: politely, or with a reset."""
    reader, writer = await client.connect()
    asked, _ = client.rng.choice(client.asked)
    body = encoded(asked, stream=client.rng.random() < 0.7)
    data = head(asked.path, len(body)) + body
    try:
        if client.rng.random() < 0.2:
            data = data[: client.rng.randrange(len(data))]
        writer.write(data)
        if client.rng.random() < 0.5:
            await asyncio.sleep(client.rng.uniform(0, 3))
        else:
            async with asyncio.timeout(client.rng.uniform(0.2, 20)):
                await reader.read(client.rng.randint(1, 2000))
        client.tally.counts["left"] += 1
    except TimeoutError:
        client.tally.counts["left"] += 1
    except OSError as error:
        client.tally.fault(f"the server reset a connection: {error}")
    finally:
        if client.rng.random() < 0.5:
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()


def _bad_bodies(rng: random.Random) -> list[tuple[str, bytes]]:
    """Return bodies that the server must refuse with 400, each with its path."""
    chat, text = "/v1/chat/completions", "/v1/completions"
    hi = [{"role": "user", "content": "Hi"}]
    bodies: list[tuple[str, Any]] = [
        (chat, {"messages": hi, "temperature": "hot"}),
        (chat, {"messages": "Hi"}),
        (chat, {"messages": []}),
        (chat, {"messages": [{"role": 7}]}),
        (chat, {"messages": hi, "max_tokens": 1 << 70}),
        (chat, {"messages": hi, "response_format": {"type": "json_schema"}}),
        (chat, {"messages": hi, "guided_regex": "(" * 50}),
        (chat, {"messages": hi, "guided_grammar": "start: " + "\x00" * 50}),
        (chat, {"messages": hi, "n": 100_000}),
        (text, {"prompt": [1, 2, 1 << 40]}),
        (text, {"prompt": [-1]}),
        (text, {"prompt": ""}),
        (text, {"prompt": "word " * 20_000}),
        (text, {"prompt": "x", "logit_bias": {"no": 1}}),
        (text, {"prompt": "x", "stop": ["x"] * 1000}),
        ("/v1/messages", {"messages": hi}),
        ("/v1/responses", {"input": [{"type": "?"}], "max_output_tokens": -1}),
        ("/tokenize", {}),
        ("/detokenize", {"tokens": [1 << 30]}),
        ("/compare/score", {"models": ["a"], "prompt_tokens": [1], "answer_tokens": []}),
    ]
    raw = [
        b"",
        b"{",
        b"null",
        b"NaN",
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"prompt": "\xff\xfe"}',
        b'{"prompt": "\\ud800"',
        b'{"prompt": 1' + b"0" * 5000 + b"}",
        rng.randbytes(500),
    ]
    return [(path, json.dumps(body).encode()) for path, body in bodies] + [(text, each) for each in raw]


async def _exchange(client: Client, data: bytes, what: str, statuses: tuple[int, ...]) -> None:
    """Send bytes; check that one of the statuses comes back, with an API's error object."""
    reader, writer = await client.connect()
    try:
        writer.write(data)
        async with asyncio.timeout(PATIENCE):
            status, headers = await read_head(reader)
            content = await read_body(reader, headers)
        error = json.loads(content)["error"]
        told = any(word in content for word in (b"Traceback", b"site-packages", b'.py"'))
        if status not in statuses or not error["message"] or told:
            client.tally.fault(f"{what}: status {status}, {content[:300]!r}")
        client.tally.counts[f"garbage: {status}"] += 1
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, KeyError) as error:
        client.tally.fault(f"{what}: {type(error).__name__} {error}")
    finally:
        writer.close()


async def bad_body(client: Client) -> None:
    """Send a body that the server refuses."""
    path, body = client.rng.choice(_bad_bodies(client.rng))
    await _exchange(client, head(path, len(body)) + body, f"{path} {body[:100]!r}", (400, 429))


async def bad_http(client: Client) -> None:
    """Send what is not HTTP, or not for this server."""
    cases = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + client.rng.randbytes(200) + b"\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 404),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20_000 + b"\r\n", 400),
        (b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n", 400),
        (b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n"
         b"content-type: application/json\r\n\r\nzz\r\n", 400),
        (b"GET /no/such/path HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /v1/models/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"GET /page/..%2f..%2f..%2f..%2fetc/passwd HTTP/1.1\r\nhost: x\r\n\r\n", 404),
        (b"DELETE /v1/completions HTTP/1.1\r\nhost: x\r\n\r\n", 405),
        (b"GET / HTTP/1.1\r\nhost: x\r\norigin: http://evil.example\r\n\r\n", 403),
        (head("/v1/completions", 2, kind="text/plain") + b"{}", 415),
    ]  # fmt: skip
    data, status = client.rng.choice(cases)
    await _exchange(client, data, repr(data[:100]), (status,))


async def huge_body(client: Client) -> None:
    """Send a body that is too large, with its length or in chunks. The server may close before it is sent."""
    reader, writer = await client.connect()
    start = head("/v1/completions", HUGE)
    chunked = client.rng.random() < 0.5
    if chunked:
        start = start.replace(b"content-length: %d" % HUGE, b"transfer-encoding: chunked")
    part = b"x" * (1 << 16)
    try:
        writer.write(start)
        for _ in range(HUGE // len(part)):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            await writer.drain()
        async with asyncio.timeout(PATIENCE):
            status, _ = await read_head(reader)
        if status not in (413, 408):  # 408 if this machine is so busy that sending takes long
            client.tally.fault(f"a huge body: status {status}")
        client.tally.counts[f"garbage: {status}"] += 1
    except (OSError, asyncio.IncompleteReadError):
        client.tally.counts["garbage: closed while it was sent"] += 1
    except TimeoutError:
        client.tally.fault("a huge body is not answered")
    finally:
        writer.close()


async def loris(client: Client) -> None:
    """Send headers or a body byte by byte, and check that the server gives up with status 408."""
    reader, writer = await client.connect()
    body = encoded(client.asked[0][0], stream=False)
    data = head("/v1/completions", len(body) + 1000)
    start = client.rng.choice([20, len(data) + 10])  # in the headers, or in the body
    data += body
    try:
        writer.write(data[:start])
        response = asyncio.ensure_future(read_head(reader))
        async with asyncio.timeout(PATIENCE):
            for byte in data[start:]:
                await asyncio.wait([response], timeout=0.5)
                if response.done():
                    break
                writer.write(bytes([byte]))
            status, _ = await response
        if status != 408:
            client.tally.fault(f"a slow request: status {status}")
        client.tally.counts[f"garbage: {status}"] += 1
    except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
        client.tally.fault(f"a slow request: {type(error).__name__} {error}")
    finally:
        writer.close()


async def garbage(client: Client) -> None:
    """Send one piece of garbage."""
    kinds = [bad_body] * 6 + [bad_http] * 4 + [huge_body, loris]
    await client.rng.choice(kinds)(client)


Role = Callable[[Client], Awaitable[None]]

#: A third of the clients misbehave. A deaf client occupies its connection for most of the time.
ROLES: tuple[Role, ...] = (ask,) * 12 + (slow, slow, leave, leave, garbage, deaf)


async def run(client: Client, role: Role, until: asyncio.Event) -> None:
    """Play a role again and again until the event is set."""
    while not until.is_set():
        try:
            await role(client)
        except OSError as error:
            client.tally.fault(f"no connection: {error}")
            await asyncio.sleep(1)
        if role in (garbage, leave):
            await asyncio.sleep(client.rng.uniform(0, 1))


async def _endless(port: int, model: str) -> None:
    asked = [(each, None) for each in requests(model, 50, 1)]
    clients = [Client(port, Tally(), random.Random(number), asked) for number in range(50)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*(run(client, ask, asyncio.Event()) for client in clients))


if __name__ == "__main__":
    asyncio.run(_endless(int(sys.argv[1]), sys.argv[2]))
