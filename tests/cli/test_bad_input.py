"""Bad input gets one clear sentence, exit code 2, and never a half-written artifact."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support.tiny import make_checkpoint
from zeropoint.cli.main import main


def zeropoint(*arguments: str | Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Run the command in this process; exit code and what it wrote to standard error."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:  # argparse
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("bad") / "model")


@pytest.fixture
def model(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


def nothing(path: Path) -> None:
    shutil.rmtree(path)


def empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


def no_weights(path: Path) -> None:
    (path / "model.safetensors").unlink()


def truncated(path: Path) -> None:
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def nan_weight(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    name = next(n for n in sorted(tensors) if "down_proj" in n)
    tensors[name] = tensors[name].copy()
    tensors[name].flat[7] = np.nan
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def pickle_only(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def edit_config(path: Path, **fields: object) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **fields}))


def unknown_architecture(path: Path) -> None:
    edit_config(path, model_type="nonesuch", architectures=["NonesuchForCausalLM"])


def wrong_shape(path: Path) -> None:
    edit_config(path, intermediate_size=999)


def broken_config(path: Path) -> None:
    (path / "config.json").write_text('{"model_type": ')


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (nothing, "model"),
        (empty, "config.json"),
        (no_weights, "safetensors"),
        (truncated, "model.safetensors"),
        (nan_weight, "down_proj"),
        (pickle_only, "pickle"),
        (unknown_architecture, "nonesuch"),
        (wrong_shape, "shape"),
        (broken_config, "config.json"),
    ],
)
def test_a_bad_checkpoint_is_one_sentence(
    damage: Callable[[Path], None], says: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(model)
    code, err = zeropoint("quantize", model, "-o", tmp_path / "out", capsys=capsys)
    assert code == 2
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert says in lines[0]
    assert not [p.name for p in tmp_path.iterdir() if "out" in p.name], "a half-written artifact was left"


@pytest.mark.parametrize("fmt", ["int9", "int8:g0", "float8", "int4:banana", ""])
def test_an_unknown_format(fmt: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = zeropoint("quantize", model, "-o", tmp_path / "out", "--format", fmt, capsys=capsys)
    assert code == 2
    assert err.startswith("error: ")
    assert not (tmp_path / "out").exists()


def test_an_unknown_algorithm(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = zeropoint("quantize", model, "-o", tmp_path / "out", "--algorithm", "nonesuch", capsys=capsys)
    assert code == 2
    assert "rtn" in err, "the error should name what exists"


def test_existing_output_is_not_touched(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    code, err = zeropoint("quantize", model, "-o", out, capsys=capsys)
    assert code == 2
    assert "exists" in err
    code, _ = zeropoint("quantize", model, "-o", out, "--overwrite", capsys=capsys)
    assert code == 2, "--overwrite replaces artifacts, not folders of something else"
    assert (out / "diary.txt").read_text() == "mine"


def test_no_write_permission(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.geteuid() == 0:  # root writes anywhere but into /proc
        target = Path("/proc/zeropoint-out")
    else:
        (tmp_path / "locked").mkdir(mode=0o500)
        target = tmp_path / "locked" / "out"
    code, err = zeropoint("quantize", model, "-o", target, capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1


def test_malformed_cards(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert zeropoint("quantize", model, "-o", out, capsys=capsys)[0] == 0
    for text in ("", "{", "[]", '{"format_version": 999}', "\x00"):
        (out / "zeropoint.json").write_text(text)
        code, err = zeropoint("generate", out, "--prompt", "x", capsys=capsys)
        assert code == 2
        assert "zeropoint.json" in err
        assert err.count("\n") == 1


def test_disk_full(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A real full disk: a small tmpfs. Needs the right to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    try:
        code, err = zeropoint("quantize", model, "-o", disk / "out", capsys=capsys)
        assert code == 2, err
        assert "space" in err
        assert err.strip().count("\n") == 0
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a second or more to quantize."""
    folder = tmp_path_factory.mktemp("big") / "model"
    return make_checkpoint("llama_tied", folder, hidden_size=512, layers=12)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_leaves_nothing(number: signal.Signals, big: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "zeropoint", "quantize", str(big), "-o", str(tmp_path / "out")]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # what is started in the background of a script ignores Ctrl-C, and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".out.partial-*")) and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert not list(tmp_path.iterdir())


def test_importing_is_cheap() -> None:
    code = "import sys, time; t = time.perf_counter(); import zeropoint; d = time.perf_counter() - t; "
    code += "print(d, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, torch_loaded = done.stdout.split()
    assert float(seconds) < 0.3
    assert torch_loaded == "False"
