"""HTTP/1.1 for the benchmarks of servers: a client of asyncio alone, which takes little time from the server."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

Headers = dict[str, str]
"""The headers of a response, names and values in lower case."""


def free_port() -> int:
    """Return a port of this machine that no program listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def head(path: str, length: int, *, close: bool = False, kind: str = "application/json") -> bytes:
    """Return the request line and the headers of a POST."""
    end = "connection: close\r\n\r\n" if close else "\r\n"
    return (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n{end}"
    ).encode()


async def get(port: int, path: str) -> bytes:
    """Return the body of a GET. Raises `OSError` if the server does not answer 200."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode())
        status, headers = await read_head(reader)
        if status != 200:
            raise OSError(f"GET {path}: status {status}")
        return await read_body(reader, headers)
    finally:
        writer.close()


async def read_head(reader: asyncio.StreamReader) -> tuple[int, Headers]:
    """Return the status and the headers of a response."""
    first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    return int(first.split()[1]), dict(line.lower().split(": ", 1) for line in lines if ": " in line)


async def read_parts(reader: asyncio.StreamReader, headers: Headers) -> AsyncIterator[bytes]:
    """Yield the parts of a response's body. Without a length, the body ends with the connection."""
    if headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            yield (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left:
            part = await reader.readexactly(min(left, 4096))
            left -= len(part)
            yield part
    else:
        while part := await reader.read(1 << 16):
            yield part


async def read_body(reader: asyncio.StreamReader, headers: Headers, pause: float = 0.0) -> bytes:
    """Return the body of a response, read with a pause before each part."""
    out = bytearray()
    async for part in read_parts(reader, headers):
        if pause:
            await asyncio.sleep(pause)
        out += part
    return bytes(out)
