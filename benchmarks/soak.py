"""Soak `zeropoint serve`: hundreds of clients, a third of which are slow, leave, or send garbage.

    python benchmarks/soak.py int4 --minutes 30 --clients 200

Every answer is compared with the answer that the same request got alone. The load stops after each round, and then the
server must be as before: no request, no connection and no page of the key-value cache in use. In the second half of the
rounds, memory may grow by at most 2 %; in the first half, the heap grows to what the load needs at its peak.
Afterwards: 1,000 open connections, clients killed by SIGKILL, SIGTERM while requests run, and a full disk. The exit
status is 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from http_client import free_port, get, head, read_body, read_head
from soak_clients import HUGE, ROLES, Client, Tally, answer_of, ask, check, run
from soak_requests import Asked, encoded, requests

#: Seconds that a server has to start, to become quiet, or to end after SIGTERM.
PATIENCE = 300.0
RUNNING = ("vllm:num_requests_running", "vllm:num_requests_waiting")
#: The most growth of memory in the second half of the rounds.
GROWTH = 0.02


@dataclass
class Server:
    """A process of `zeropoint serve`, with one model of the name `model`."""

    artifact: Path
    threads: int
    port: int = 0
    model: str = "model"
    process: subprocess.Popen[bytes] = field(init=False)

    async def start(self, *options: str, **popen: Any) -> None:
        """Start the server, and return when it answers."""
        self.port = free_port()
        command = [sys.executable, "-m", "zeropoint", "serve", f"{self.model}={self.artifact}"]
        command += ["--port", str(self.port), "--threads", str(self.threads), *options]
        self.process = subprocess.Popen(command, **{"stdout": subprocess.DEVNULL, **popen})
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            with suppress(OSError):
                await get(self.port, "/health")
                return
            await asyncio.sleep(0.1)
        self.process.kill()
        raise SystemExit(f"the server does not start: exit status {self.process.poll()}")

    async def metrics(self) -> dict[str, float]:
        """Return the metrics without labels' names: the values of this server's one model."""
        lines = (await get(self.port, "/metrics")).decode().splitlines()
        return {
            line.split("{")[0].split(" ")[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if line and line[0] != "#"
        }

    async def requests(self) -> float:
        """Return the number of requests that run or wait."""
        metrics = await self.metrics()
        return sum(metrics[name] for name in RUNNING)

    def memory(self) -> int:
        """Return the resident bytes of the server and of the process that renders chat templates."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        texts = [Path(f"/proc/{each}/status").read_text() for each in (pid, *children)]
        return sum(int(text.split("VmRSS:")[1].split()[0]) for text in texts) << 10

    def files(self) -> int:
        """Return the number of open files and connections."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    async def quiet(self, tally: Tally, files: int) -> None:
        """Wait until no request, no page and no connection is in use; note a fault if that takes too long."""
        names = (*RUNNING, "vllm:kv_cache_usage_perc")
        until = time.monotonic() + PATIENCE
        while True:
            now = await self.metrics()
            used = [now[name] for name in names]
            open_files = self.files() - files
            if not any(used) and open_files <= 0:
                return
            if time.monotonic() > until:
                tally.fault(f"not quiet: running, waiting, share of pages: {used}; {open_files} more files")
                return
            await asyncio.sleep(0.5)


async def send(
    server: Server, asked: Asked, *, stream: bool, begun: asyncio.Event | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Return the status, headers and body of the response to one request; set `begun` when the headers are there."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        body = encoded(asked, stream=stream)
        writer.write(head(asked.path, len(body), close=True) + body)
        status, headers = await read_head(reader)
        if begun is not None:
            begun.set()
        return status, headers, await read_body(reader, headers)
    finally:
        writer.close()


async def alone(server: Server, asked: Asked, tally: Tally) -> tuple[Asked, Any]:
    """Return a request with its answer while nothing else runs. The answer as a stream must be equal."""
    answers = []
    for stream in (False, True):
        status, headers, content = await send(server, asked, stream=stream)
        if status != 200:
            raise SystemExit(f"{asked} is refused: {content!r}")
        answers.append(answer_of(asked, content, headers["content-type"]))
    if answers[0] != answers[1]:
        tally.fault(f"the stream differs: {asked}\n  whole:  {answers[0]}\n  stream: {answers[1]}")
    return asked, answers[0]


def clients_of(
    server: Server, known: list[tuple[Asked, Any]], tally: Tally, count: int, seed: int = 0
) -> list[Client]:
    """Return clients, each with an address and a random generator of its own."""
    return [
        Client(
            server.port,
            tally,
            random.Random(seed << 20 | number),
            known,
            f"127.0.{1 + number // 250}.{1 + number % 250}",
        )
        for number in range(count)
    ]


async def load(clients: list[Client], seconds: float, *, honest: bool = False) -> None:
    """Let the clients work for some seconds, and wait until each one's last request is complete."""
    until = asyncio.Event()
    roles = (ask,) if honest else ROLES
    tasks = [
        asyncio.create_task(run(client, roles[number % len(roles)], until))
        for number, client in enumerate(clients)
    ]
    while seconds > 0:
        before = time.monotonic()
        await asyncio.sleep(0.2)
        seconds -= min(time.monotonic() - before, 1)  # without the time in which this machine stood still
    until.set()
    await asyncio.gather(*tasks)


async def rounds(
    server: Server, known: list[tuple[Asked, Any]], tally: Tally, args: argparse.Namespace
) -> None:
    """Load the server in rounds. Between two rounds, it must be as it was before."""
    files, warm = server.files(), 0
    seconds = args.minutes * 60 / args.rounds
    for number in range(args.rounds):
        clients = clients_of(server, known, tally, args.clients, seed=number + 1)
        await load(clients, seconds)
        await server.quiet(tally, files)
        memory = server.memory()
        if number < (args.rounds + 1) // 2:
            warm = memory
        print(
            f"round {number + 1}: {tally.counts['right answers']:,} right answers, {memory / 2**20:.1f} MiB "
            f"({memory / warm - 1:+.2%}), {server.files()} open files",
            flush=True,
        )
        if memory > warm * (1 + GROWTH):
            tally.fault(f"memory grew from {warm:,} to {memory:,} bytes")


async def many_connections(server: Server, known: list[tuple[Asked, Any]], tally: Tally, count: int) -> None:
    """Hold `count` connections open, a fifth of them with requests: all are answered, and so is `/health`."""
    files = server.files()
    idle = []
    for number in range(count * 4 // 5):
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        idle.append((reader, writer))
        if number % 2:  # kept open after a request
            writer.write(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
            await read_body(reader, (await read_head(reader))[1])
    before = tally.counts["right answers"]
    work = asyncio.create_task(load(clients_of(server, known, tally, count // 5, seed=99), 20, honest=True))
    await asyncio.sleep(5)
    most = server.files() - files
    begin = time.perf_counter()
    await get(server.port, "/health")
    health = time.perf_counter() - begin
    await work
    for _, writer in idle:
        writer.close()
    if most < count * 0.9:
        tally.fault(f"only {most} connections were open")
    await server.quiet(tally, files)
    right = tally.counts["right answers"] - before
    print(f"{most} open connections: {right:,} right answers, /health in {1e3 * health:.0f} ms", flush=True)


async def killed_clients(server: Server, tally: Tally) -> None:
    """Kill a process with 50 clients by SIGKILL: the server cancels their requests."""
    files = server.files()
    command = [
        sys.executable,
        str(Path(__file__).with_name("soak_clients.py")),
        str(server.port),
        server.model,
    ]
    with subprocess.Popen(command) as clients:
        until = time.monotonic() + PATIENCE
        while not (running := await server.requests()) and time.monotonic() < until:
            await asyncio.sleep(0.05)
        clients.kill()
    if not running:
        tally.fault("the clients to be killed do not run")
    begin = time.monotonic()
    await server.quiet(tally, files)
    print(
        f"SIGKILL of clients: {running:.0f} requests ran; quiet {time.monotonic() - begin:.1f} s later",
        flush=True,
    )


async def terminated(server: Server, known: list[tuple[Asked, Any]], tally: Tally) -> None:
    """Send SIGTERM while requests run: all of them are answered, later ones are refused, the exit status is 0."""
    right = tally.counts["right answers"]

    async def one(asked: Asked, expected: Any, begun: asyncio.Event) -> None:
        try:
            check(tally, asked, expected, *await send(server, asked, stream=True, begun=begun))
        except (OSError, asyncio.IncompleteReadError) as error:
            begun.set()
            tally.fault(f"SIGTERM: a request is lost: {type(error).__name__} {error}")

    begun = [asyncio.Event() for _ in known]
    tasks = [asyncio.create_task(one(*each, event)) for each, event in zip(known, begun, strict=True)]
    await asyncio.gather(*(event.wait() for event in begun))
    server.process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.2)
    with suppress(OSError, asyncio.IncompleteReadError):
        status, _, content = await send(server, known[0][0], stream=True)
        if status != 503:
            tally.fault(f"SIGTERM: a later request gets status {status}, {content[:300]!r}")
    await asyncio.gather(*tasks)
    code = await asyncio.to_thread(server.process.wait, 300)
    if code != 0:
        tally.fault(f"SIGTERM: exit status {code}")
    right = tally.counts["right answers"] - right
    print(f"SIGTERM: {right} of {len(tasks)} requests answered, exit status {code}", flush=True)


async def full_disk(
    artifact: Path, known: list[tuple[Asked, Any]], tally: Tally, threads: int, room: int
) -> None:
    """Start a server whose log is on a full disk, and whose cache folder takes only files of up to `room` bytes.

    It must answer all the same, and leave no half-written file: only locks, and records that are whole.
    """
    server = Server(artifact, threads)
    with tempfile.TemporaryDirectory() as cache, open("/dev/full", "wb") as full:
        await server.start(
            env={**os.environ, "XDG_CACHE_HOME": cache, "ZEROPOINT_CACHE": cache},
            stdout=full,
            stderr=full,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, room)),
        )
        for asked, expected in known:
            check(tally, asked, expected, *await send(server, asked, stream=False))
        server.process.send_signal(signal.SIGTERM)
        code = await asyncio.to_thread(server.process.wait, PATIENCE)
        left = [
            str(path.relative_to(cache))
            for path in Path(cache).rglob("*")
            if path.is_file() and path.suffix != ".lock" and not is_record(path)
        ]
    if code != 0 or left:
        tally.fault(f"full disk: exit status {code}, files left: {left}")
    print(
        f"full disk, files of at most {room} bytes: {len(known)} requests answered, exit status {code}",
        flush=True,
    )


def is_record(path: Path) -> bool:
    """Return whether a file is a whole record of the cache, in JSON."""
    try:
        return path.suffix == ".json" and isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False


async def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifact", type=Path)
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="length of the rounds together (default: 30)"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--requests", type=int, default=40, help="different requests (default: 40)")
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tally, server = Tally(), Server(args.artifact, args.threads)
    # a small cache, so that requests are preempted and prefixes evicted; short times, so that slow clients are cut
    await server.start(
        "--kv-tokens", "2048", "--max-body", str(HUGE // 2), "--client-seconds", "3", "--max-queue", "100",
        "--drain-seconds", "300",
    )  # fmt: skip
    watch = asyncio.create_task(tally.watch())
    try:
        known = [await alone(server, each, tally) for each in requests(server.model, args.requests, 0)]
        print(f"{len(known)} requests, each answered alone twice", flush=True)
        await rounds(server, known, tally, args)
        await many_connections(server, known, tally, args.connections)
        await killed_clients(server, tally)
        print(
            json.dumps({k: v for k, v in (await server.metrics()).items() if "preempt" in k or "hits" in k})
        )
        await terminated(server, known, tally)
    finally:
        if server.process.poll() is None:
            server.process.kill()
    for room in (0, 4096):
        await full_disk(args.artifact, known, tally, args.threads, room)
    watch.cancel()
    for name, count in sorted(tally.counts.items()):
        print(f"{name}: {count:,}")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
