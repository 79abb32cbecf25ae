"""`levels.py` forces an instruction set level on Zeropoint and on every peer that a benchmark starts."""

from __future__ import annotations

import os
import subprocess
import sys
from types import ModuleType

import pytest

from tests.benchmarks.scripts import FOLDER, script
from zeropoint.kernels import isa_levels


@pytest.fixture(scope="module")
def levels() -> ModuleType:
    return script("levels")


def test_a_lower_level_is_forced_on_all(levels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zeropoint.kernels.isa_levels", lambda: ("scalar", "avx2", "avx512", "amx"))
    found = levels.environment("avx2")
    assert found["ZEROPOINT_ISA"] == "avx2"
    assert found["ATEN_CPU_CAPABILITY"] == "avx2"
    assert found["ONEDNN_MAX_CPU_ISA"] == found["OV_CPU_MAX_ISA"] == "AVX2"
    assert levels.environment("amx") == {}
    with pytest.raises(SystemExit, match="scalar is no level of this machine: give one of avx2, avx512, amx"):
        levels.environment("scalar")
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    assert levels.peer_folder("llama_cpp").name == "llama_cpp-avx2"
    assert levels.peer_folder("openvino").name == "openvino"
    assert levels.notes()[0].startswith(
        "- held to avx2, below this machine's own level: `ATEN_CPU_CAPABILITY=avx2`"
    )


def test_nothing_is_forced_at_the_own_level(levels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(levels.FORCED, raising=False)
    assert levels.notes() == []
    assert levels.peer_folder("llama_cpp").name == "llama_cpp"


def test_llama_cpp_has_a_build_for_every_level_below_the_highest(levels: ModuleType) -> None:
    assert set(levels.LLAMA_CPP) == set(levels.ENVIRONMENT) - {"amx"}


@pytest.mark.skipif(
    isa_levels()[-1:] in ((), ("scalar",)), reason="this processor has the scalar kernels only"
)
def test_the_command_runs_in_the_environment_of_its_level() -> None:
    own = isa_levels()[-1]
    show = "import os; print(os.environ.get('ZEROPOINT_ISA'), os.environ.get('ONEDNN_MAX_CPU_ISA'))"
    clean = {k: v for k, v in os.environ.items() if k not in ("ZEROPOINT_ISA", "ONEDNN_MAX_CPU_ISA")}

    def run(level: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, FOLDER / "levels.py", level, sys.executable, "-c", show]
        return subprocess.run(command, env=clean, capture_output=True, text=True)

    assert run(own).stdout.split() == ["None", "None"]
    assert "is no level of this machine" in run("mmx").stderr
    if own != "avx2":
        assert run("avx2").stdout.split() == ["avx2", "AVX2"]
