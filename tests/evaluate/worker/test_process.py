"""The measuring process seen from its parent: results, errors, crashes, interruption."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from zeropoint.errors import ArtifactError, UsageError, ZeropointError
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker.messages import ModelToOpen, PerformanceRequest, PerformanceResult


def request(path: str, repeats: int = 3) -> PerformanceRequest:
    model = ModelToOpen(path, engine="stub")
    return PerformanceRequest(model, prompt_tokens=8, new_tokens=2, threads=1, batch=1, repeats=repeats)


def call(path: str, command: tuple[str, ...], **changes: Any) -> PerformanceResult:
    return client.call(request(path, **changes), threads=1, subject=path, command=command)


def test_result_and_errors_cross_the_process(stub_worker: tuple[str, ...]) -> None:
    found = call("tiny", stub_worker)
    assert found.load_seconds > 0
    assert found.ready_seconds > found.load_seconds
    assert found.loaded.resident_bytes > 1_000_000
    assert found.speed.decode.repeats == 3
    with pytest.raises(ArtifactError, match=r"^missing has no weights$"):
        call("missing", stub_worker)
    with pytest.raises(ZeropointError, match="measuring broken failed: RuntimeError: a bug"):
        call("broken", stub_worker)
    with pytest.raises(ZeropointError, match=r"ended with code 3: .*last words"):
        call("crash", stub_worker)
    with pytest.raises(UsageError, match="at least 3 repeats"):
        call("tiny", stub_worker, repeats=1)


def script(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", source)


def test_a_killed_process_says_so() -> None:
    with pytest.raises(ZeropointError, match="killed, most likely because memory ran out"):
        call("m", script("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))


def test_a_line_cut_short_is_a_failure() -> None:
    with pytest.raises(ZeropointError, match="ended with code 0"):
        call("m", script("import sys; sys.stdin.read(); print('{\"resu', end='')"))


def test_leaving_the_call_kills_the_process(tmp_path: Any) -> None:
    pid_file = tmp_path / "pid"
    source = (
        f"import os, json, time; open({str(pid_file)!r}, 'w').write(str(os.getpid()));"
        "print(json.dumps({'progress': 0.0, 'what': 'load'}), flush=True); time.sleep(60)"
    )

    def interrupt(_what: str, _done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        client.call(request("m"), threads=1, subject="m", command=script(source), progress=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_worker_module_answers_with_json(stub_worker: tuple[str, ...]) -> None:
    done = subprocess.run(
        stub_worker,
        input=json.dumps(request("missing").to_json()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[-1] == {"error": {"type": "ArtifactError", "message": "missing has no weights"}}
