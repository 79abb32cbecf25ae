"""Forks of a server process that has imported torch and transformers, because a new process needs seconds for that.

The server runs nothing else, so a fork of it is in the state of a new process after the same imports. With
`measuring_processes`, `compare`, `check`, `fit` and `bench` measure in such forks. Tests of memory, and of the
measuring process itself, use `new_processes` instead.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import IO, Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        __name__,
        "tests.support.tiny",
        "transformers.models.llama.modeling_llama",
        "zeropoint.evaluate.worker.process",
        "zeropoint.quantization",
        "zeropoint.runtime.torch_engine.runner",
        "tests.support.frozen",
    ]
)


class Fork:
    """A fork that runs a Python command. Has what `evaluate/worker/client.py` uses of `subprocess.Popen`."""

    def __init__(self, command: Sequence[str], stderr: IO[str], env: Mapping[str, str]) -> None:
        """Start `command`, which is `[python, "-m", MODULE, ...]` or `[python, FILE, ...]`."""
        requests, to_fork = CONTEXT.Pipe(duplex=False)
        from_fork, answers = CONTEXT.Pipe(duplex=False)
        ends = (requests, answers, Connection(os.dup(stderr.fileno())))
        self._process = CONTEXT.Process(target=_run, args=(command[1:], ends, dict(env), os.getcwd()))
        self._process.start()
        for end in ends:
            end.close()
        self.stdin = os.fdopen(_descriptor(to_fork), "w", encoding="utf-8")
        self.stdout = os.fdopen(_descriptor(from_fork), encoding="utf-8")

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def wait(self) -> None:
        self._process.join()

    def kill(self) -> None:
        self._process.kill()


class _Subprocess:
    """A replacement for the module `subprocess`, with the members that `evaluate/worker/client.py` uses."""

    PIPE = subprocess.PIPE
    forks = True

    def Popen(  # noqa: N802 - the module's name
        self, command: Sequence[str], *, stderr: IO[str], env: Mapping[str, str], **options: Any
    ) -> Any:
        if self.forks and command[1] != "-c":
            return Fork(command, stderr, env)
        return subprocess.Popen(command, stderr=stderr, env=env, **options)


_SUBPROCESS = _Subprocess()


@contextlib.contextmanager
def measuring_processes() -> Iterator[None]:
    """Run measuring processes as forks inside the context."""
    from zeropoint.evaluate.worker import client

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(client, "subprocess", _SUBPROCESS)
        yield


@contextlib.contextmanager
def new_processes() -> Iterator[None]:
    """Run measuring processes as new processes inside the context, as for users."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_SUBPROCESS, "forks", False)
        yield


def _descriptor(connection: Connection) -> int:
    """Return a copy of the connection's file descriptor, and close the connection."""
    with connection:
        return os.dup(connection.fileno())


def _run(
    arguments: Sequence[str], streams: Sequence[Connection], environment: Mapping[str, str], folder: str
) -> None:
    """Run the command in this fork, with `streams` as stdin, stdout and stderr."""
    import torch

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream.fileno(), number)
        stream.close()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - closed when the fork ends
    torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if arguments[0] == "-m":
        sys.argv = list(arguments[1:])
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
