"""The servers that `serve.py` measures, each in its own environment and process group."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import contestant_base
from contestant_base import SkippedError, find, last_line
from http_client import free_port, get
from load_client import complete

#: Seconds after which a server that does not answer yet is skipped.
START_LIMIT = 600.0


@dataclass
class Contestant(contestant_base.Contestant):
    """One server. `found` maps each scenario to the metrics of each of its rounds."""

    port: int = 0
    model: str = ""
    process: subprocess.Popen[bytes] | None = None
    found: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    async def start(self) -> float:
        """Start the server; return the seconds to its first token."""
        self.stop()
        self.port = free_port()
        begin = time.perf_counter()
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                self.command("listen", self.path, self.fmt, str(self.threads), str(self.port)),
                stdout=log,
                stderr=log,
                env=self.environment(),
                start_new_session=True,
            )
        while True:
            with suppress(OSError, asyncio.IncompleteReadError):
                self.model = json.loads(await get(self.port, "/v1/models"))["data"][0]["id"]
                break
            if self.process.poll() is not None or time.perf_counter() - begin > START_LIMIT:
                raise SkippedError(f"did not start (status {self.process.poll()}): {last_line(self.log)}")
            await asyncio.sleep(0.02)
        answer = await complete(self.port, self.model, tokens(16, 0), 1)
        if answer.error:
            raise SkippedError(f"did not answer: {answer.error}; {last_line(self.log)}")
        return answer.arrivals[0] - begin

    def signal(self, number: int) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def stop(self) -> None:
        if self.process is None:
            return
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(20)
        self.signal(signal.SIGKILL)
        self.process.wait()
        self.process = None

    def peak_memory(self) -> float:
        """Return the peak resident bytes of the server's processes, added up."""
        assert self.process is not None
        total = 0
        for status in Path("/proc").glob("[0-9]*/status"):
            with suppress(OSError, IndexError, ValueError):
                text = status.read_text()
                if os.getpgid(int(status.parent.name)) == self.process.pid:
                    total += int(text.split("VmHWM:")[1].split()[0]) * 1024
        return total


def tokens(count: int, seed: int) -> list[int]:
    """Return random token ids that are in the vocabulary of every model measured."""
    return random.Random(seed).choices(range(1000, 30000), k=count)


async def enter(options: argparse.Namespace) -> tuple[list[Contestant], dict[str, str]]:
    """Convert the model for each contestant and start its server once.

    Return the contestants that answer, paused by SIGSTOP, and a dict from the name of each other one to the reason why
    it does not.
    """
    contestants, skipped = [], {}
    for contestant in find(Contestant, "SERVED", options):
        try:
            contestant.prepare(options.model)
            await contestant.start()
        except SkippedError as why:
            contestant.stop()
            skipped[contestant.name] = str(why)
            continue
        contestant.signal(signal.SIGSTOP)
        contestants.append(contestant)
        print(f"{contestant.name} answers", file=sys.stderr, flush=True)
    return contestants, skipped
