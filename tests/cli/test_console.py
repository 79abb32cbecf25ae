"""Standard streams in any encoding, closed, or read by nobody: no traceback, and an exit code that tells the truth."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.tiny import make_checkpoint
from zeropoint import quantize
from zeropoint.cli import console
from zeropoint.errors import UsageError

FEW = ("--max-new-tokens", "4", "--threads", "1")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("console")
    quantize(make_checkpoint("llama_tied", folder / "model"), folder / "artifact", format="int8")
    return folder / "artifact"


def run(
    *arguments: str | bytes | Path,
    stdin: bytes | None = b"",
    env: dict[str, str] | None = None,
    close: tuple[int, ...] = (),
    stdout: int = subprocess.PIPE,
) -> subprocess.CompletedProcess[bytes]:
    def shut() -> None:
        for descriptor in close:
            os.close(descriptor)

    return subprocess.run(
        [sys.executable, "-m", "zeropoint", *arguments],
        input=stdin,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {})},
        preexec_fn=shut,
        check=False,
        timeout=120,
    )


def assert_quiet(done: subprocess.CompletedProcess[bytes], code: int = 0) -> None:
    """Check the exit code, and that standard error holds at most the line in which `generate` names its engine."""
    told = re.sub(r"\A\d+ tokens in [\d.]+ s by the native engine\n", "", done.stderr.decode())
    assert (done.returncode, told) == (code, "")


@pytest.mark.parametrize("prompt", [b"caf\xe9", b"\xff\xfe", "é→😀".encode(), b"\xed\xa0\x80"])
def test_a_prompt_in_any_bytes(prompt: bytes, artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert_quiet(run("generate", artifact, "--prompt", prompt, "--stop", prompt, *FEW, "--json", out))
    assert json.loads(out.read_text())["prompt"] == prompt.decode("utf-8", "replace")


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    ],
)
def test_lines_and_text_in_any_encoding(env: dict[str, str], artifact: Path) -> None:
    done = run("chat", artifact, *FEW, stdin="é→\n".encode() + b"caf\xe9\r\n\n\x00\n", env=env)
    assert_quiet(done)
    assert done.stdout.count(b"\n") >= 3


def test_what_an_encoding_lacks_is_shown_as_a_question_mark() -> None:
    code = (
        "import sys; from zeropoint.cli import console\n"
        "with console.streams(): print('→é', 'caf\\udce9'); print(console.ask(''))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        input="é\n".encode(),
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"?? caf?\n?\n"


@pytest.mark.parametrize("close", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 1, 2)])
def test_closed_streams(close: tuple[int, ...], artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    stdin = None if 0 in close else b"hello\n"
    assert_quiet(run("chat", artifact, *FEW, stdin=stdin, close=close))
    assert_quiet(run("generate", artifact, "--prompt", "x", *FEW, "--json", out, stdin=stdin, close=close))
    assert json.loads(out.read_text())["tokens"]


def to_nobody(*arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        return run(*arguments, stdin=b"one\ntwo\n", stdout=writing)
    finally:
        os.close(writing)


def test_nobody_reads(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    assert_quiet(to_nobody("doctor", "--no-measure"))
    assert_quiet(to_nobody("--help"))
    assert_quiet(to_nobody("chat", artifact, *FEW))
    assert_quiet(to_nobody("generate", artifact, "--prompt", "x", *FEW, "--json", out))
    assert len(json.loads(out.read_text())["tokens"]) == 4
    assert_quiet(to_nobody("generate", artifact, "--prompt", "x", *FEW, "--json", "/dev/stdout"))


def test_the_exit_code_is_the_work_s_where_nobody_reads(artifact: Path, tmp_path: Path) -> None:
    """`plan diff` ends with 1 where plans differ, as the gate does where it is missed."""
    plan = json.loads((artifact / "zeropoint.json").read_text())["plan"]
    name = next(iter(plan["choices"]))
    plan["choices"][name] = {**plan["choices"][name], "reason": "another", "scheme": None}
    (tmp_path / "other.json").write_text(json.dumps(plan))
    assert_quiet(to_nobody("plan", "diff", artifact, tmp_path / "other.json"), code=1)


def test_a_full_device_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = run("doctor", "--no-measure", stdout=full.fileno())
    assert done.returncode == 2
    assert done.stderr.decode().startswith("error: cannot write to standard output")
    assert done.stderr.count(b"\n") == 1


def test_an_input_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "written").open("w") as stdin:  # as after `0>file`
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(UsageError, match="standard input"):
            console.ask("> ")


@pytest.mark.parametrize(
    ("text", "shown"),
    [("é", "é"), ("caf\udce9", "caf\ufffd"), ("\udcc3\udca9", "é"), ("\ud800x", "\ufffdx"), ("a", "a")],
)
def test_readable(text: str, shown: str) -> None:
    assert console.readable(text, "ascii" if shown == "é" and text != "é" else None) == shown


def test_main_puts_the_streams_back(capsys: pytest.CaptureFixture[str], refused: Callable[[], int]) -> None:
    before = sys.stdin, sys.stdout, sys.stderr
    assert refused() == 2
    assert (sys.stdin, sys.stdout, sys.stderr) == before
    assert capsys.readouterr().err.startswith("error: ")


@pytest.fixture
def refused() -> Callable[[], int]:
    from zeropoint.cli.main import main

    return lambda: main(["generate", "/nonesuch", "--prompt", "x"])
