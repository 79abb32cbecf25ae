"""Values of `fit`: its settings, predictions and answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeropoint.evaluate import TaskRequest, Verdict
from zeropoint.machine.detect import Machine
from zeropoint.planning.solver import Quantity
from zeropoint.values.budget import Budget
from zeropoint.values.plan import Plan

#: Objectives by name: the weight of each minimized quantity.
OBJECTIVES: dict[str, dict[Quantity, float]] = {
    "balanced": {"nbytes": 1.0, "decode": 1.0},
    "size": {"nbytes": 1.0},
    "speed": {"decode": 1.0, "prefill": 0.1},
    "quality": {"loss": 1.0},
}


#: The default formats of a plan besides 16 bits, widest first.
FORMATS = ("int8", "int5", "int4")


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of `fit`.

    `formats`: the formats besides 16 bits, widest first; None: `FORMATS`, and those that `offered.py` adds.
    `tokens`: scored tokens for each measured plan; `gate_tokens`: for the gate. `cache`: folder for measurements, None
    for no cache. `machine`: the target machine, None for this one. `tasks`: tasks of the gate. `anyway`: plan even if
    16 bits meet the budget. `evaluations`: maximum number of exchanges to measure. `revision`: of a hub model.
    """

    formats: tuple[str, ...] | None = None
    algorithm: str = "rtn"
    objective: str | None = None
    calibration: str | None = None
    calibration_tokens: int | None = None
    text: str | None = None
    tokens: int = 2048
    gate_tokens: int = 8192
    evaluations: int = 12
    threads: int = 1
    seed: int = 0
    revision: str | None = None
    overwrite: bool = False
    anyway: bool = False
    cache: Path | None = None
    machine: Machine | None = None
    tasks: TaskRequest | None = None


@dataclass(frozen=True, slots=True)
class Prediction:
    """The predicted cost of a plan: bytes of weights, tokens per second, and mean KL in nats per token."""

    name: str
    nbytes: float
    decode: float
    prefill: float
    kl: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weights_bytes": self.nbytes,
            "decode_tokens_per_second": self.decode,
            "prefill_tokens_per_second": self.prefill,
            "kl": self.kl,
        }


@dataclass(frozen=True, slots=True)
class Fit:
    """The answer of `fit`.

    `refusal`: why there is no plan, else None. `formats`: number of groups by format. `wider`: groups with a wider
    format than the narrowest, most fragile first. `front`: plans of lowest expected loss by size. `measured`: plans
    that were run. `uniform`: plans with one format. `warnings`: on weights that were not quantized as planned.
    `verdict`, `decode` and `prefill` (tokens/s) are measured on the artifact, None without one. `unneeded`: the refusal
    is that 16 bits already meet the budget.
    """

    budget: Budget
    refusal: str | None
    plan: Plan | None = None
    predicted: Prediction | None = None
    formats: Mapping[str, int] = field(default_factory=dict)
    wider: Sequence[str] = ()
    front: Sequence[Prediction] = ()
    measured: Sequence[Prediction] = ()
    uniform: Sequence[Prediction] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    verdict: Verdict | None = None
    decode: float | None = None
    prefill: float | None = None
    path: Path | None = None
    unneeded: bool = False

    @property
    def met(self) -> bool:
        """Return whether an artifact exists, passed its gate, and meets the bounds on size and speed."""
        return self.verdict is not None and self.verdict.passed and not self.missed()

    def missed(self) -> list[str]:
        """Return one sentence for each bound on size or speed that the artifact misses."""
        misses = []
        if (
            self.plan is not None
            and self.budget.max_memory is not None
            and self.plan.nbytes > self.budget.max_memory
        ):
            misses.append(f"the weights take {self.plan.nbytes} bytes, more than {self.budget.max_memory}")
        for what, rate, least in (
            ("decodes", self.decode, self.budget.min_decode),
            ("reads a prompt at", self.prefill, self.budget.min_prefill),
        ):
            if rate is not None and least is not None and rate < least:
                misses.append(f"it {what} {rate:.0f} tokens/s, fewer than {least:g}")
        return misses

    def to_json(self) -> dict[str, Any]:
        return {
            "budget": self.budget.to_json(),
            "refusal": self.refusal,
            "plan": None if self.plan is None else self.plan.to_json(),
            "predicted": None if self.predicted is None else self.predicted.to_json(),
            "formats": dict(self.formats),
            "wider": list(self.wider),
            "front": [point.to_json() for point in self.front],
            "measured": [point.to_json() for point in self.measured],
            "notes": list(self.notes),
            "warnings": list(self.warnings),
            "uniform": [point.to_json() for point in self.uniform],
            "verdict": None if self.verdict is None else self.verdict.to_json(),
            "decode_tokens_per_second": self.decode,
            "prefill_tokens_per_second": self.prefill,
            "met": self.met,
            "unneeded": self.unneeded,
        }
