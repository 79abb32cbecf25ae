"""`Machine`: the properties of a computer that matter for quantized inference."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from zeropoint.machine import cores

_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"})
#: Instruction set levels of the native kernels, with the CPU flags that each needs (in Linux's names). The native
#: library detects its levels itself (native/platform/), because AMX also needs the permission of the system.
LEVEL_FLAGS: dict[str, frozenset[str]] = {
    "avx2": _AVX2,
    "avxvnni": _AVX2 | {"avx_vnni"},
    "avx512": _AVX512,
    "amx": _AVX512 | {"amx_tile", "amx_int8"},
    "neon": frozenset({"asimd"}),
    "dotprod": frozenset({"asimd", "asimddp"}),
    "i8mm": frozenset({"asimd", "asimddp", "i8mm"}),
}

#: Names of ARM64 processors by implementer and part: Linux gives these two numbers only.
ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse N1",
    ("0x41", "0xd40"): "Neoverse V1",
    ("0x41", "0xd44"): "Cortex-X1",
    ("0x41", "0xd49"): "Neoverse N2",
    ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse V2",
    ("0xc0", "0xac3"): "Ampere One",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer: processor, usable cores, instruction set levels, memory in bytes, accelerators.

    `memory_bandwidth_gbps` is the read bandwidth in 10^9 bytes per second, None if it was not measured.
    """

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
        """Return this machine, without a bandwidth measurement.

        `cores` and memory respect the process's CPU affinity and cgroup limits.
        """
        info = _cpu_info()
        flags = frozenset(info.get("flags", info.get("Features", "")).split())  # x86, ARM
        total, available = _memory()
        return cls(
            processor=info.get("model name") or _arm_core(info) or platform.processor() or platform.machine(),
            system=f"{platform.system()} {platform.machine()}",
            cores=cores.usable_cores(),
            isa_levels=("scalar", *(level for level, needs in LEVEL_FLAGS.items() if needs <= flags)),
            ram_total_bytes=total,
            ram_available_bytes=available,
            accelerators=_accelerators(),
        )

    def with_bandwidth(self, bytes_per_second: float) -> Machine:
        """Return a copy with this memory bandwidth."""
        return replace(self, memory_bandwidth_gbps=bytes_per_second / 1e9)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lasting(self) -> dict[str, Any]:
        """Return the properties for an artifact's card: all but free memory, which changes from run to run."""
        return {key: value for key, value in asdict(self).items() if key != "ram_available_bytes"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Return the machine that `to_json` wrote. Raises `ValueError` for missing, unknown or invalid fields."""
        names, values = {field.name for field in fields(cls)}, dict(data)
        missing, unknown = names - {"memory_bandwidth_gbps"} - values.keys(), values.keys() - names
        if missing or unknown:
            raise ValueError(f"missing or unknown fields: {', '.join(sorted(missing | unknown))}")
        levels, accelerators = (tuple(map(str, values.pop(n))) for n in ("isa_levels", "accelerators"))
        if not {"scalar", *LEVEL_FLAGS} >= set(levels) or "scalar" not in levels:
            raise ValueError(f"its isa_levels are {', '.join(levels)}")
        for name in ("cores", "ram_total_bytes"):
            if not isinstance(values[name], int) or values[name] < 1:
                raise ValueError(f"its {name} is {values[name]!r}")
        return cls(isa_levels=levels, accelerators=accelerators, **values)


def _cpu_info() -> dict[str, str]:
    """Return the first processor's entries of /proc/cpuinfo; empty if the file does not exist."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _arm_core(info: Mapping[str, str]) -> str:
    """Return the name of an ARM64 processor, or its numbers if the name is unknown; "" for another processor."""
    implementer, part = info.get("CPU implementer"), info.get("CPU part")
    if implementer is None or part is None:
        return ""
    return ARM_CORES.get((implementer, part), f"ARM64 {implementer} {part}")


def _memory() -> tuple[int, int]:
    """Return the bytes of memory, and the bytes free for a new process, within the limits of container and process."""
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
        limit = int((cores.CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((cores.CGROUP / "memory.current").read_text(encoding="ascii"))
        total, available = min(total, limit), min(available, max(limit - used, 0))
    except (OSError, ValueError):  # no limit ("max"), or no cgroup
        pass
    limit = _process_limit()
    return min(total, limit), min(available, limit)


def _process_limit() -> int:
    """Return the bytes that a process may allocate (`ulimit -v`, `ulimit -d`); a huge number without a limit."""
    try:
        import resource
    except ImportError:  # not a Unix system
        return sys.maxsize
    limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA)]
    return min((limit for limit in limits if limit != resource.RLIM_INFINITY), default=sys.maxsize)


def _accelerators() -> tuple[str, ...]:
    """Return the names of NVIDIA GPUs with a loaded driver, read from /proc: no GPU library is initialized."""
    names = []
    for file in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            continue
        names += [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
    return tuple(names)
