"""This computer, as far as quantized inference cares: cores, instruction sets, memory, accelerators."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

#: Instruction set levels the kernels are built for, each with the CPU flags it needs (as Linux names them).
LEVEL_FLAGS: dict[str, frozenset[str]] = {
    "avx2": frozenset({"avx2", "fma"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}),
    "amx": frozenset({"amx_tile", "amx_int8"}),
}

CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Machine:
    """`memory_bandwidth_gbps` is the read bandwidth in 10^9 bytes per second, `None` until measured."""

    processor: str
    system: str
    cores: int
    isa_levels: tuple[str, ...]
    ram_total_bytes: int
    ram_available_bytes: int
    accelerators: tuple[str, ...]
    memory_bandwidth_gbps: float | None = None

    @classmethod
    def detect(cls) -> Machine:
        """Look, without measuring. `cores` and memory respect the process's affinity and cgroup limits."""
        info = _cpu_info()
        flags = frozenset(info.get("flags", "").split())
        total, available = _memory()
        return cls(
            processor=info.get("model name") or platform.processor() or platform.machine(),
            system=f"{platform.system()} {platform.machine()}",
            cores=_cores(),
            isa_levels=("scalar", *(level for level, needs in LEVEL_FLAGS.items() if needs <= flags)),
            ram_total_bytes=total,
            ram_available_bytes=available,
            accelerators=_accelerators(),
        )

    def with_bandwidth(self, bytes_per_second: float) -> Machine:
        return replace(self, memory_bandwidth_gbps=bytes_per_second / 1e9)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lasting(self) -> dict[str, Any]:
        """What is the same from one run to the next, as an artifact's card has it: free memory is left out."""
        return {key: value for key, value in asdict(self).items() if key != "ram_available_bytes"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """What `to_json` gave. Raises `ValueError` for fields that are missing, unknown or of no sense."""
        known, given = {field.name for field in fields(cls)}, dict(data)
        missing = known - {"memory_bandwidth_gbps"} - given.keys()
        if missing or given.keys() - known:
            raise ValueError(f"fields differ: {', '.join(sorted(missing | (given.keys() - known)))}")
        levels, accelerators = (tuple(map(str, given.pop(n))) for n in ("isa_levels", "accelerators"))
        if not {"scalar", *LEVEL_FLAGS} >= set(levels) or "scalar" not in levels:
            raise ValueError(f"its isa_levels are {', '.join(levels)}")
        for name in ("cores", "ram_total_bytes"):
            if not isinstance(given[name], int) or given[name] < 1:
                raise ValueError(f"its {name} is {given[name]!r}")
        return cls(isa_levels=levels, accelerators=accelerators, **given)


def _cpu_info() -> dict[str, str]:
    """The first processor's entries of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    usable = len(affinity(0)) if affinity is not None else os.cpu_count() or 1
    try:  # a container's share of the processor, in microseconds of each period
        quota, period = (CGROUP / "cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            usable = min(usable, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return usable


def _memory() -> tuple[int, int]:
    """Bytes of memory, and bytes free for a new process, both within the container's limit."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
        total, available = fields["MemTotal"], fields["MemAvailable"]
    except (OSError, KeyError, ValueError, IndexError):
        try:
            total = available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError):
            return 0, 0
    try:
        limit = int((CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        total, available = min(total, limit), min(available, max(limit - used, 0))
    except (OSError, ValueError):  # no limit ("max"), or no cgroup
        pass
    return total, available


def _accelerators() -> tuple[str, ...]:
    """Names of NVIDIA GPUs with a loaded driver; nothing is imported or initialized for it."""
    found = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        found += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(found)
