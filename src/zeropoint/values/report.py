"""What was measured, in one shape for terminal, page, JSON and card. No number without count and place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.files.atomic import dump_json


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured number: `value` in `unit`, its interval `[low, high]`, over `n` observations.

    `low` and `high` are a 95 % bootstrap interval for quality, the observed spread for speed, and
    equal to `value` for exact counts such as bytes. `where` says how: threads, batch, text, engine.
    """

    model: str
    metric: str
    value: float
    low: float
    high: float
    n: int
    unit: str
    where: str

    @classmethod
    def exact(cls, model: str, metric: str, value: float, unit: str, where: str) -> Measurement:
        return cls(model, metric, value, value, value, 1, unit, where)


@dataclass(frozen=True, slots=True)
class Report:
    """Measurements of one run, the machine they were made on, and free-form `extra` sections
    (per-layer errors, sample answers, verdicts) for the renderers."""

    measurements: tuple[Measurement, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def find(self, model: str, metric: str) -> Measurement | None:
        """The first measurement of that model and metric, or None."""
        return next((m for m in self.measurements if m.model == model and m.metric == metric), None)

    def models(self) -> list[str]:
        """Model names in order of first appearance."""
        return list(dict.fromkeys(m.model for m in self.measurements))

    def to_json(self) -> dict[str, Any]:
        return {
            "measurements": [asdict(m) for m in self.measurements],
            "machine": dict(self.machine),
            **{key: value for key, value in self.extra.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        known = {f.name for f in fields(Measurement)}
        rows: Sequence[Mapping[str, Any]] = data.get("measurements", ())
        for row in rows:
            if set(row) != known:
                raise UsageError(f"a measurement has the fields {sorted(row)}, not {sorted(known)}")
        extra = {k: v for k, v in data.items() if k not in ("measurements", "machine")}
        return cls(tuple(Measurement(**row) for row in rows), data.get("machine", {}), extra)

    def dumps(self) -> str:
        return dump_json(self.to_json())
