"""What `engine.py` and `serve.py` share: a base class of contestants, the search for them, and command-line options."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import levels
from contestant import import_driver

from zeropoint.machine.cores import default_threads

HERE = Path(__file__).parent
ROOT = HERE.parent
OURS = "zeropoint"


class SkippedError(Exception):
    """Why a contestant does not take part."""


@dataclass
class Contestant:
    """One format of a peer. `python`: of the peer's environment; `path`: the model converted for this contestant."""

    peer: str
    fmt: str
    python: Path
    path: Path
    threads: int

    @property
    def name(self) -> str:
        return f"{self.peer}:{self.fmt}"

    @property
    def log(self) -> Path:
        return self.path.with_name(self.path.name + ".log")

    def command(self, *arguments: str | Path) -> list[str | Path]:
        driver = HERE / "peers" / f"{self.peer}.py"
        return [self.python, "-P", HERE / "contestant.py", driver, *arguments]

    @staticmethod
    def environment() -> dict[str, str]:
        """Return the environment of a driver. `ZEROPOINT_PYTHON` is for drivers that convert with Zeropoint."""
        return {**os.environ, "ZEROPOINT_PYTHON": sys.executable, "HF_HUB_OFFLINE": "1"}

    def prepare(self, model: Path) -> None:
        """Convert the model, unless an earlier run did. Raises `SkippedError` if the peer is not installed or fails."""
        if not self.python.exists():
            folder = levels.peer_folder(self.peer)
            option = f" --level {levels.forced()}" if folder.name != self.peer else ""
            raise SkippedError(f"not installed: python benchmarks/peers/install.py {self.peer}{option}")
        if not self.path.exists():
            partial = self.path.with_name(self.path.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was stopped
            self.run_logged("convert", self.command("convert", model, partial, self.fmt))
            partial.rename(self.path)

    def run_logged(self, verb: str, command: list[str | Path]) -> str:
        """Run a command with its errors in the log; return its last line of output. Raises `SkippedError`."""
        with self.log.open("a") as errors:
            done = subprocess.run(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self.environment()
            )
        if done.returncode:
            raise SkippedError(f"did not {verb} (status {done.returncode}): {last_line(self.log)}")
        return done.stdout.strip().rsplit("\n", 1)[-1]


_Contestant = TypeVar("_Contestant", bound=Contestant)


def find(
    kind: type[_Contestant], formats: str, options: argparse.Namespace, skip: Sequence[str] = ()
) -> list[_Contestant]:
    """Return a contestant of class `kind` for each format that the drivers name in `formats` (`FORMATS` or `SERVED`).

    `options.only` limits them to names that start with one of its words, `skip` leaves out names that hold one of its.
    """
    store = ROOT / "build" / "bench"
    store.mkdir(parents=True, exist_ok=True)
    found = []
    for driver in sorted((HERE / "peers").glob("*.py")):
        peer = driver.stem
        python = Path(sys.executable) if peer == OURS else levels.peer_folder(peer) / "bin" / "python"
        for fmt in getattr(import_driver(driver), formats, ()):
            # what follows a dash is a way to run, not another file
            path = store / f"{options.model.resolve().name}-{peer}-{fmt.split('-')[0]}"
            contestant = kind(peer, fmt, python, path, options.threads)
            chosen = not options.only or any(contestant.name.startswith(word) for word in options.only)
            if chosen and not any(word in contestant.name for word in skip):
                found.append(contestant)
    return found


def options_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that both benchmarks have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="Hugging Face checkpoint folder")
    parser.add_argument("--only", nargs="+", help="contestants whose name starts with one of these")
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser


def last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it printed nothing"
