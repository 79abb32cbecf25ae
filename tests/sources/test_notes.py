"""What a user should hear of a model's files is told by every command that opens it, once."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zeropoint
from tests.support import tiny
from zeropoint.evaluate import bench, check, compare
from zeropoint.evaluate.worker import client
from zeropoint.fitting import Settings, fit
from zeropoint.originals import open_original
from zeropoint.values.budget import Budget

FILE = "model.safetensors"
EXTRA = "holds 1 tensors for which the model .* has no place"
ADAPTER = "holds an adapter"
PREFIX = "is left out of the tensors' names"


class MeasuringError(Exception):
    """Raised in place of measuring."""


def unexpected(folder: Path) -> None:
    found = load_file(folder / FILE)
    save_file(found | {"model.layers.0.strange.weight": torch.ones(3)}, folder / FILE, {"format": "pt"})


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))


def prefix(folder: Path) -> None:
    found = {f"module.{name}": value for name, value in load_file(folder / FILE).items()}
    save_file(found, folder / FILE, {"format": "pt"})


def run_fit(path: str, out: Path) -> None:
    fit(path, out, Budget(max_memory=1), Settings(threads=1), lambda *_: None)


DOORS: dict[str, Callable[[str, Path], object]] = {
    "bench": lambda path, out: bench(path),
    "compare": lambda path, out: compare(path, [path]),
    "check": lambda path, out: check(path, path),
    "fit": run_fit,
    "export --type": lambda path, out: open_original(path, tokens=16),
    "from_pretrained": lambda path, out: zeropoint.AutoModelForCausalLM.from_pretrained(
        path, load_in_8bit=True
    ),
}


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("llama_tied", unexpected, EXTRA),
        ("llama_tied", adapter, ADAPTER),
        ("llama_tied", prefix, PREFIX),
        ("bloom", unexpected, EXTRA),
    ],
)
def test_every_command_tells_the_notes_once(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    family: str,
    change: Callable[[Path], None],
    said: str,
) -> None:
    def measured(*_: object, **__: object) -> None:
        raise MeasuringError

    monkeypatch.setattr(client, "call", measured)
    monkeypatch.setattr(import_module("zeropoint.fitting.fit"), "Planner", measured)
    whole = tiny.make_checkpoint(family, tmp_path / "whole")
    change(whole)
    for index, (name, use) in enumerate(DOORS.items()):
        folder = Path(shutil.copytree(whole, tmp_path / f"changed-{index}"))
        caplog.clear()
        with contextlib.suppress(MeasuringError, zeropoint.ZeropointError):
            use(str(folder), tmp_path / f"out-{index}")
        told = [text for text in caplog.messages if re.search(said, text)]
        assert len(told) == 1, (name, caplog.messages)
        assert str(folder) in told[0]
