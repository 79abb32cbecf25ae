"""The parent's side of the measuring process: send a request, report progress, return the result."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import IO, Any, TypeVar

from zeropoint import errors
from zeropoint.errors import ZeropointError
from zeropoint.evaluate.worker.messages import Request
from zeropoint.progress import Progress

R = TypeVar("R")

COMMAND = (sys.executable, "-m", "zeropoint.evaluate.worker")
_STDERR_LINES = 6


def call(
    request: Request[R],
    *,
    threads: int,
    subject: str,
    progress: Progress | None = None,
    command: Sequence[str] = COMMAND,
) -> R:
    """Run `request` in a fresh process and return its result.

    `subject` names the measured model in error messages. The process is killed when this call ends in any way, Ctrl-C
    included. Raises the worker's own `ZeropointError`, or a `ZeropointError` with the reason why the process ended.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
            text=True,
            encoding="utf-8",
        )
        try:
            answer = _converse(process, request.to_json(), progress)
            process.wait()
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                _close(stream)
        if answer is None:
            raise ZeropointError(f"measuring {subject} failed: {_ending(process.returncode, stderr)}")
    if "error" in answer:
        raise _rebuild(answer["error"], subject)
    return request.result(answer["result"])


def _converse(
    process: subprocess.Popen[str],
    request: Mapping[str, Any],
    progress: Progress | None,
) -> dict[str, Any] | None:
    """Send the request and return the last message; None if the process ends without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        json.dump(request, process.stdin)
        process.stdin.close()
    except BrokenPipeError:  # the process ended before reading; its exit code and stderr tell why
        return None
    for line in process.stdout:
        try:
            message = json.loads(line)
        except ValueError:  # the process ended in the middle of a line
            return None
        if "progress" not in message:
            return message if isinstance(message, dict) else None
        if progress is not None:
            progress(message["what"], message["progress"])
    return None


def _rebuild(error: Mapping[str, str], subject: str) -> ZeropointError:
    """Return the worker's error as an exception of the same class."""
    kind = getattr(errors, error["type"], None) if error["type"] else None
    if isinstance(kind, type) and issubclass(kind, ZeropointError):
        return kind(error["message"])
    return ZeropointError(f"measuring {subject} failed: {error['message']}")


def _ending(code: int, stderr: IO[str]) -> str:
    """Return in words how the process ended, with the last lines of its standard error."""
    if code == -signal.SIGKILL:
        return "the process was killed, most likely because memory ran out"
    stderr.seek(0)
    tail = " | ".join(line.strip() for line in stderr.readlines()[-_STDERR_LINES:] if line.strip())
    how = f"the process ended with signal {-code}" if code < 0 else f"the process ended with code {code}"
    return f"{how}: {tail}" if tail else how


def _close(stream: IO[str] | None) -> None:
    try:
        if stream is not None:
            stream.close()
    except BrokenPipeError:
        pass
