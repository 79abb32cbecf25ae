"""Running natively loads neither torch nor transformers, and starts quickly enough to be used from a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.native.conftest import Artifacts

GENERATE = """
import sys
import zeropoint
from zeropoint.cli.main import main
model = zeropoint.load({path!r}, threads=1)
assert model.runner.engine == "native"
model.generate("hello", max_new_tokens=3)
model.chat("hello", max_new_tokens=3)
model.logits(__import__("numpy").arange(5))
assert main(["generate", {path!r}, "--prompt", "hello", "--max-new-tokens", "3", "--threads", "1"]) == 0
heavy = ("torch", "transformers", "accelerate", "huggingface_hub", "pandas", "scipy")
print(sorted(name for name in heavy if name in sys.modules))
"""


@pytest.mark.parametrize("format", ["int4", "fp16"])
def test_neither_torch_nor_transformers_is_imported(format: str, artifact_of: Artifacts) -> None:
    path = str(artifact_of("qwen2", format))
    done = subprocess.run(
        [sys.executable, "-c", GENERATE.format(path=path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_chat_keeps_the_conversation(artifact_of: Artifacts) -> None:
    path = artifact_of("llama_tied", "int8")
    done = subprocess.run(
        [sys.executable, "-m", "zeropoint", "chat", str(path), "--max-new-tokens", "4", "--threads", "1"],
        input="hello\n\nand again\n/reset\nhello\n/exit\nnever read\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    assert done.stdout.count("\n") >= 3


def test_generate_writes_what_it_did(artifact_of: Artifacts, tmp_path: Path) -> None:
    from zeropoint.cli.main import main

    path = artifact_of("llama_tied", "int8")
    command = ["generate", str(path), "--prompt", "hello", "--max-new-tokens", "6", "--threads", "1"]
    options = ["--temperature", "0.9", "--top-k", "40", "--top-p", "0.95", "--min-p", "0.01", "--seed", "4"]
    found = []
    for run in range(2):
        file = tmp_path / f"{run}.json"
        assert main([*command, *options, "--kv-cache", "int8", "--json", str(file)]) == 0
        found.append(json.loads(file.read_text()))
    assert found[0]["engine"] == "native"
    assert found[0]["tokens"] == found[1]["tokens"]


def test_a_value_out_of_range_is_one_sentence(
    artifact_of: Artifacts, capsys: pytest.CaptureFixture[str]
) -> None:
    from zeropoint.cli.main import main

    path = artifact_of("llama_tied", "int8")
    assert main(["generate", str(path), "--prompt", "hello", "--top-p", "1.5"]) == 2
    assert "top-p" in capsys.readouterr().err
