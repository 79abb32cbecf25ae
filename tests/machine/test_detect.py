"""The machine as it is seen, without and with a container's limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zeropoint.machine import cores
from zeropoint.machine.detect import Machine


def test_describes_this_computer() -> None:
    found = Machine.detect()
    assert found.cores >= 1
    assert 0 < found.ram_available_bytes <= found.ram_total_bytes
    assert found.processor
    assert found.isa_levels[0] == "scalar"
    assert found.memory_bandwidth_gbps is None
    assert found.with_bandwidth(12e9).memory_bandwidth_gbps == 12
    assert json.loads(json.dumps(found.to_json()))["cores"] == found.cores


def test_respects_the_containers_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("1073741824\n")
    (tmp_path / "memory.current").write_text("73741824\n")
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    found = Machine.detect()
    assert found.cores == 1
    assert found.ram_total_bytes == 1 << 30
    assert found.ram_available_bytes <= 1_000_000_000


def test_the_default_number_of_threads_respects_the_containers_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    assert cores.default_threads() == cores.usable_cores() == 1
    assert cores.default_threads(3) == 3


def test_without_a_limit_the_cores_of_the_affinity_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text("max 100000\n")
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(300)))
    assert cores.usable_cores() == 300
    assert cores.default_threads() == cores.MAX_THREADS


def test_levels_agree_with_the_kernels() -> None:
    from zeropoint.kernels import isa_levels

    if not isa_levels():
        pytest.skip("the native kernels are not built")
    assert set(isa_levels()) <= set(Machine.detect().isa_levels)


def test_an_arm_processor_is_named_by_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(features: str, part: str) -> Machine:
        info = {"Features": features, "CPU implementer": "0x41", "CPU part": part}
        monkeypatch.setattr("zeropoint.machine.detect._cpu_info", lambda: info)
        return Machine.detect()

    pi = found("fp asimd evtstrm aes crc32", "0xd08")
    assert (pi.processor, pi.isa_levels) == ("Cortex-A72", ("scalar", "neon"))
    server = found("fp asimd asimddp sve i8mm bf16", "0xd40")
    assert (server.processor, server.isa_levels) == ("Neoverse V1", ("scalar", "neon", "dotprod", "i8mm"))
    assert found("fp asimd asimddp", "0xfff").processor == "ARM64 0x41 0xfff"
    assert Machine.from_json(server.to_json()) == server
