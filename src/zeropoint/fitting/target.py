"""The target machine of a plan: this machine, or a machine that a file describes.

Loss and size are the same on every machine. Speed for another machine is an estimate: the kernels run here with that
machine's instruction set and at most its number of cores, and the decode time (mostly memory reads) is multiplied by
the ratio of the two memory bandwidths. `fit` calls such a speed an estimate and does not measure the artifact's.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

from zeropoint.errors import UsageError, reason
from zeropoint.files.json_file import parse_json
from zeropoint.kernels import active_isa, library
from zeropoint.machine.detect import Machine
from zeropoint.values.budget import Budget

#: Share of a described machine's memory for weights; the rest is for the key-value cache and the system.
USABLE = 0.8


@dataclass(frozen=True, slots=True)
class Target:
    """The machine to plan for.

    `decode_scale` is decode time on that machine divided by decode time on this one. `described` is None if the plan is
    for this machine.
    """

    isa: str
    threads: int
    decode_scale: float = 1.0
    described: Machine | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def here(cls, threads: int) -> Target:
        """Return this machine as the target."""
        return cls(active_isa(), threads)

    @classmethod
    def of(cls, there: Machine, threads: int) -> Target:
        """Return the target for the described machine. Raises `UsageError` if its memory bandwidth is missing."""
        if not there.memory_bandwidth_gbps:
            raise UsageError(
                "the machine's description lacks memory_bandwidth_gbps, which the speed estimate needs: "
                "write it with `zeropoint doctor --json FILE` there"
            )
        threads = max(1, min(threads, there.cores))
        levels = library.isa_levels()
        isa = [level for level in levels if level in there.isa_levels][-1]
        here = library.read_bandwidth(threads=threads) / 1e9
        notes = [
            f"speeds are estimates for {there.processor}: timed here on {isa} with {threads} threads, "
            f"its memory reads {there.memory_bandwidth_gbps:.0f} GB/s, this one's {here:.0f}"
        ]
        if missing := [level for level in there.isa_levels if level not in levels]:
            notes.append(f"it also has {', '.join(missing)}, which cannot be timed here: it may be faster")
        return cls(isa, threads, here / there.memory_bandwidth_gbps, there, tuple(notes))

    def kernels(self) -> AbstractContextManager[None]:
        """Run the kernels of the target's instruction set inside a `with` statement."""
        return library.level(self.isa)

    def within(self, budget: Budget) -> Budget:
        """Return the budget with its memory bound reduced to what the described machine has for weights."""
        if self.described is None:
            return budget
        room = int(self.described.ram_total_bytes * USABLE)
        if budget.max_memory is not None and budget.max_memory <= room:
            return budget
        return replace(budget, max_memory=room)


def read_machine(path: Path) -> Machine:
    """Read a machine from the JSON of `zeropoint doctor --json`. Raises `UsageError` if `path` holds none."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        return Machine.from_json(data.get("machine", data))
    except (OSError, ValueError, AttributeError, TypeError, KeyError) as cause:
        raise UsageError(
            f"{path} does not describe a machine ({reason(cause)}): write it there with `zeropoint doctor --json FILE`"
        ) from cause
