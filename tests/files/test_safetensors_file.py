"""Tensors come back whole, and what was read does not stay in memory for as long as the file is open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from zeropoint.evaluate import memory
from zeropoint.files import safetensors_file
from zeropoint.files.safetensors_file import TensorFile


@pytest.mark.parametrize("most", [0, 100, 1 << 20])
def test_a_file_opened_anew_gives_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(safetensors_file, "MOST_MAPPED", most)
    tensors = {f"t{i}": np.arange(i * 7, dtype=np.float32).reshape(i, 7) for i in range(1, 9)}
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    file = TensorFile(tmp_path / "x.safetensors")
    kept = {name: file.read(name) for name in [*tensors, *tensors]}
    for name, value in tensors.items():
        np.testing.assert_array_equal(kept[name], value)


def test_read_tensors_leave_memory(tmp_path: Path) -> None:
    tensors = {f"t{i}": np.full(8 << 20, i, np.float32) for i in range(8)}  # 32 MiB each
    safetensors_file.write(tmp_path / "x.safetensors", tensors)
    tensors.clear()
    file = TensorFile(tmp_path / "x.safetensors")
    before = memory.measure().file_bytes
    for name in file.names():
        assert file.read(name)[0] == float(name[1:])
    assert memory.measure().file_bytes - before < 160 << 20
