"""`zeropoint serve`: names of models, API keys, and errors before the server listens."""

from __future__ import annotations

import argparse
import builtins
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from zeropoint.cli import console
from zeropoint.cli.commands import serve
from zeropoint.cli.main import main
from zeropoint.errors import UsageError
from zeropoint.serve.http.state import Settings


def test_names_of_models(tmp_path: Path) -> None:
    for name in ("a", "b", "x=y"):
        (tmp_path / name).mkdir()
    a, b, odd = (str(tmp_path / name) for name in ("a", "b", "x=y"))
    assert serve.named_folders([a, f"int8={b}"], None, None) == {"a": Path(a), "int8": Path(b)}
    assert serve.named_folders([odd], None, None) == {"x=y": Path(odd)}
    assert serve.named_folders([a], "gpt", None) == {"gpt": Path(a)}
    with pytest.raises(UsageError, match="two models are named a"):
        serve.named_folders([a, f"a={b}"], None, None)
    with pytest.raises(UsageError, match="--served-model-name"):
        serve.named_folders([a, b], "gpt", None)


def test_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    assert serve.keys_of(argparse.Namespace(api_key=[], api_key_file=str(file))) == ("one", "two")
    assert serve.keys_of(argparse.Namespace(api_key=["k"], api_key_file=None)) == ("k",)
    file.write_text("\n")
    with pytest.raises(UsageError, match="holds no key"):
        serve.keys_of(argparse.Namespace(api_key=[], api_key_file=str(file)))
    with pytest.raises(UsageError, match="is empty"):
        serve.keys_of(argparse.Namespace(api_key=[""], api_key_file=None))


def test_a_port_in_use_is_told_before_a_model_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["serve", str(tmp_path), "--port", str(taken.getsockname()[1])]) == 2
    assert "choose another with --port" in capsys.readouterr().err


def test_a_full_disk_does_not_end_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with console.streams():
            serve._greet("http://127.0.0.1:1", ["m"], Settings())


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "llguidance", "prometheus_client"])
def test_a_missing_library(
    tmp_path: Path, module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = builtins.__import__

    def fail(name: str, *rest: Any) -> Any:
        if name.startswith("zeropoint.serve.http"):
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", fail)
    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'zeropoint[serve]'" in capsys.readouterr().err
