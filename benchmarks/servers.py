"""The servers that `serve.py` measures, each in its own environment and process group."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from load_client import complete, get

HERE = Path(__file__).parent
ROOT = HERE.parent
OURS = "zeropoint"
#: Seconds after which a server that does not answer yet is skipped.
START_LIMIT = 600.0


class SkippedError(Exception):
    """Why a contestant does not take part."""


@dataclass
class Contestant:
    """One server. `found` maps each scenario to the metrics of its rounds."""

    peer: str
    fmt: str
    python: Path
    path: Path
    threads: int
    port: int = 0
    model: str = ""
    process: subprocess.Popen[bytes] | None = None
    found: dict[str, list[dict[str, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.peer}:{self.fmt}"

    @property
    def log(self) -> Path:
        return self.path.with_name(self.path.name + ".log")

    def command(self, *arguments: str | Path) -> list[str | Path]:
        driver = HERE / "peers" / f"{self.peer}.py"
        return [self.python, "-P", HERE / "contestant.py", driver, *arguments]

    def prepare(self, model: Path) -> None:
        """Convert the model, unless an earlier run did."""
        if self.path.exists():
            return
        partial = self.path.with_name(self.path.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
        with self.log.open("a") as log:
            done = subprocess.run(
                self.command("convert", model, partial, self.fmt),
                stdout=log,
                stderr=log,
                env=self.environment(),
            )
        if done.returncode:
            raise SkippedError(f"did not convert (status {done.returncode}): {last_line(self.log)}")
        partial.rename(self.path)

    @staticmethod
    def environment() -> dict[str, str]:
        """Return the environment of a driver. `ZEROPOINT_PYTHON` is for drivers that convert with Zeropoint."""
        return {**os.environ, "ZEROPOINT_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}

    async def start(self) -> float:
        """Start the server; return the seconds to its first token."""
        self.stop()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
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


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"


def tokens(count: int, seed: int) -> list[int]:
    """Return random token ids that are in the vocabulary of every model measured."""
    return random.Random(seed).choices(range(1000, 30000), k=count)


async def enter(model: Path, threads: int, only: list[str] | None) -> tuple[list[Contestant], dict[str, str]]:
    """Convert the model for each contestant and start its server once.

    Return the contestants that answer, paused by SIGSTOP, and a dict from the name of each other one to the reason why
    it does not. `only`: prefixes of the names to take.
    """
    sys.path.insert(0, str(HERE))
    from contestant import import_driver

    contestants, skipped = [], {}
    store = ROOT / "build" / "bench"
    store.mkdir(parents=True, exist_ok=True)
    for driver in sorted((HERE / "peers").glob("*.py")):
        for fmt in getattr(import_driver(driver), "SERVED", ()):
            peer, name = driver.stem, f"{driver.stem}:{fmt}"
            if only and not any(name.startswith(word) for word in only):
                continue
            python = (
                Path(sys.executable) if peer == OURS else ROOT / "build" / "peers" / peer / "bin" / "python"
            )
            if not python.exists():
                skipped[name] = f"not installed: python benchmarks/peers/install.py {peer}"
                continue
            path = store / f"{model.resolve().name}-{peer}-{fmt}"
            contestant = Contestant(peer, fmt, python, path, threads)
            try:
                contestant.prepare(model)
                await contestant.start()
            except SkippedError as why:
                contestant.stop()
                skipped[name] = str(why)
                continue
            contestant.signal(signal.SIGSTOP)
            contestants.append(contestant)
            print(f"{name} answers", file=sys.stderr, flush=True)
    return contestants, skipped
