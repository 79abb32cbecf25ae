"""`Measurement` and `Report`: measured numbers, each with its interval, count and conditions, for terminal, page and
JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from zeropoint.errors import UsageError
from zeropoint.files.atomic import dump_json


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured number: `value` in `unit` with its interval `[low, high]`, over `n` observations.

    The interval is a 95 % bootstrap interval for quality and the observed spread for speed; for exact counts such as
    bytes, `low` and `high` equal `value`. `where` is a text of the conditions: threads, batch, text, engine.
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
        """Return the measurement of an exact count."""
        return cls(model, metric, value, value, value, 1, unit, where)


@dataclass(frozen=True, slots=True)
class Report:
    """The measurements of one run, the machine that ran them, and free-form `extra` sections for the renderers
    (per-layer errors, sample answers, verdicts)."""

    measurements: tuple[Measurement, ...]
    machine: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def find(self, model: str, metric: str) -> Measurement | None:
        """Return the first measurement of that model and metric, or None."""
        return next((m for m in self.measurements if m.model == model and m.metric == metric), None)

    def models(self) -> list[str]:
        """Return the model names in order of first appearance."""
        return list(dict.fromkeys(m.model for m in self.measurements))

    def to_json(self) -> dict[str, Any]:
        return {
            "measurements": [asdict(m) for m in self.measurements],
            "machine": dict(self.machine),
            **{key: value for key, value in self.extra.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Report:
        """Return the report that `to_json` wrote. Raises `UsageError` for a measurement with other fields."""
        field_names = {f.name for f in fields(Measurement)}
        rows: Sequence[Mapping[str, Any]] = data.get("measurements", ())
        for row in rows:
            if set(row) != field_names:
                raise UsageError(f"a measurement has the fields {sorted(row)}, not {sorted(field_names)}")
        extra = {k: v for k, v in data.items() if k not in ("measurements", "machine")}
        return cls(tuple(Measurement(**row) for row in rows), data.get("machine", {}), extra)

    def dumps(self) -> str:
        """Return the report as JSON text."""
        return dump_json(self.to_json())
