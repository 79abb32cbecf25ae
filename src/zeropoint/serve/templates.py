"""`Templates` renders chat templates in a separate process, with limits on time, memory and output."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.tokenizer import Message

#: The most seconds of CPU time for rendering one conversation, and seconds for starting the process.
SECONDS, START_SECONDS = 5.0, 30.0
#: The process may take this many times its CPU time, because on a busy machine it waits for a core.
WAITING = 12
#: The most characters of a rendered conversation, which are more than any model's context has room for.
MAX_CHARACTERS = 32 << 20


class Templates:
    """Renders chat templates. All methods may be called from any thread; one conversation is rendered at a time."""

    def __init__(self, *, seconds: float = SECONDS, max_characters: int = MAX_CHARACTERS) -> None:
        self._seconds, self._max_characters = seconds, max_characters
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._fresh = True  # the process has not answered yet

    def start(self) -> None:
        """Start the process, so that the first conversation need not wait for it."""
        with self._lock:
            self._running()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def render(
        self,
        template: str,
        messages: Sequence[Message],
        special: Mapping[str, str],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Any] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the text that a template renders for a conversation.

        `template` is the template's source. The other arguments are those of `zeropoint.tokenizer.templates.render`.
        Raises `UsageError` if the template fails, or takes too much time or memory.
        """
        request = {
            "template": template,
            "messages": list(messages),
            "special": dict(special),
            "add_generation_prompt": add_generation_prompt,
            "tools": list(tools) if tools else None,
            "options": dict(options or {}),
            "limit": self._max_characters,
            "seconds": self._seconds,
        }
        line = json.dumps(request).encode() + b"\n"
        with self._lock:
            answer = self._exchange(line)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer["text"]

    def _exchange(self, line: bytes) -> dict[str, str]:
        """Send a line to the process and return its answer; end the process if it does not answer in time."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = time.monotonic() + (START_SECONDS if self._fresh else 0) + WAITING * self._seconds
        try:
            answer = _talk(process.stdin.fileno(), process.stdout.fileno(), line, deadline)
        except TimeoutError:
            self._end()
            raise UsageError(self._too_slow()) from None
        except (OSError, EOFError):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)  # it has closed its output, so it ends now
            self._end()
            if process.returncode == -signal.SIGPROF:
                raise UsageError(self._too_slow()) from None
            raise UsageError(
                "the model's chat template failed: it takes too much memory, or it crashed the template process"
            ) from None
        self._fresh = False
        return dict(json.loads(answer))

    def _too_slow(self) -> str:
        return f"the model's chat template takes more than {self._seconds:g} seconds"

    def _running(self) -> subprocess.Popen[bytes]:
        """Return the process; start one if there is none."""
        if self._process is None or self._process.poll() is not None:
            self._end()
            # -P: do not import modules from the current folder, whose files may be anyone's
            command = [sys.executable, "-P", "-m", "zeropoint.serve.template_worker"]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
            )
            os.set_blocking(self._process.stdin.fileno(), False)  # type: ignore[union-attr]
            self._fresh = True
        return self._process

    def _end(self) -> None:
        """Kill the process, if there is one."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                assert stream is not None
                stream.close()


def _talk(into: int, out: int, line: bytes, deadline: float) -> bytes:
    """Write `line` to the file descriptor `into`; return the line that is read from the file descriptor `out`.

    Raises `TimeoutError` after `deadline` (a time of `time.monotonic`), and `EOFError` if `out` ends before the line.
    """
    rest, answer = memoryview(line), bytearray()
    while not answer.endswith(b"\n"):
        seconds = deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError
        poll = select.poll()  # not select.select, which fails for files beyond the 1,024th
        poll.register(out, select.POLLIN)
        if rest:
            poll.register(into, select.POLLOUT)
        for file, _ in poll.poll(seconds * 1000):
            if file == into and rest:
                rest = rest[os.write(into, rest) :]
            elif file == out:
                part = os.read(out, 1 << 16)
                if not part:
                    raise EOFError
                answer += part
    return bytes(answer)
