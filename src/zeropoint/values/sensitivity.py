"""What each group of layers costs at each format, as a table: measured by `quantization.sensitivity`, read by planners.

The unit of every loss is nats per token, so that losses of different groups add up (to first order) and a planner
can compare them with bytes: `Sensitivity.loss[group][format]` is an `Estimate` with its standard error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.files.json_file import parse_json

SENSITIVITY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over windows of text and its standard error (NaN-free: 0 when there was a single window)."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Estimate:
        values = np.asarray(samples, np.float64)
        spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(float(f"{values.mean():.6g}"), float(f"{spread:.6g}"))


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that must share a format: those given the same input by one module (q/k/v, gate/up), the experts of a
    stack, a tied embedding and head. `block` is None outside the blocks; `kind` names the column of the heat map."""

    name: str
    weights: tuple[str, ...]
    block: int | None
    kind: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Cost:
    """One group at one format.

    - `fisher`: KL divergence predicted to second order, nats per token: half the squared product of the output's
      gradient and its error, over labels drawn from the model itself;
    - `output_error`: ||y' - y|| / ||y|| of the group's outputs;
    - `measured`: KL divergence of the float model with this group alone swapped; None where it was not measured.
    """

    group: str
    format: str
    fisher: Estimate
    output_error: float
    measured: Estimate | None = None


@dataclass(frozen=True, slots=True)
class InputShape:
    """What a group's input looks like: `max_ratio` is the largest channel's maximum over the median channel's,
    `kurtosis` the median over channels of the fourth moment by the squared second one (3 for a normal distribution),
    `token_kurtosis` the same of the pooled input, where outlier channels show; `worst_channel` is the largest's index.
    """

    group: str
    max_ratio: float
    kurtosis: float
    token_kurtosis: float
    worst_channel: int


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The whole table. `key` is a digest of the model, formats, text and versions it was measured with; `unreached`
    names groups that no token of the text reached, whose costs are not known; `agreement` maps a pair of scores and
    a format ("fisher ~ measured, int4") to Spearman's rank correlation."""

    model: str
    key: str
    formats: tuple[str, ...]
    tokens: int
    groups: tuple[Group, ...]
    costs: tuple[Cost, ...]
    inputs: tuple[InputShape, ...]
    agreement: Mapping[str, float]
    unreached: tuple[str, ...] = ()

    @property
    def loss(self) -> dict[str, dict[str, Estimate]]:
        """`loss[group][format]`: the measured divergence where there is one, else the predicted one."""
        table: dict[str, dict[str, Estimate]] = {}
        for cost in self.costs:
            table.setdefault(cost.group, {})[cost.format] = cost.measured or cost.fisher
        return table

    def fragile(self, format: str) -> list[Cost]:
        """The costs at one format, the most fragile group first, all by the same (predicted) score."""
        found = [cost for cost in self.costs if cost.format == format]
        return sorted(found, key=lambda cost: (-cost.fisher.value, cost.group))

    def to_json(self) -> dict[str, Any]:
        return {"sensitivity_version": SENSITIVITY_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Raises `UsageError` for anything that `to_json` of this release did not make."""
        if not isinstance(data, Mapping) or data.get("sensitivity_version") != SENSITIVITY_VERSION:
            raise UsageError(
                f"this is not a sensitivity file of version {SENSITIVITY_VERSION}: measure it again"
            )
        try:
            return cls(
                model=str(data["model"]),
                key=str(data["key"]),
                formats=tuple(data["formats"]),
                tokens=int(data["tokens"]),
                groups=tuple(Group(**{**g, "weights": tuple(g["weights"])}) for g in data["groups"]),
                costs=tuple(_cost(row) for row in data["costs"]),
                inputs=tuple(InputShape(**row) for row in data["inputs"]),
                agreement=dict(data["agreement"]),
                unreached=tuple(data["unreached"]),
            )
        except (KeyError, TypeError, ValueError) as cause:
            raise UsageError(f"the sensitivity file is damaged ({cause!r}): measure it again") from cause


def load(path: str | Path) -> Sensitivity:
    """Read a sensitivity file. Raises `UsageError`."""
    try:
        data = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise UsageError(f"the sensitivity file {path} cannot be read: {cause}") from cause
    return Sensitivity.from_json(data)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation of two scores of the same things, ties at their mean rank; 0 where either is constant."""
    ranks = [_ranks(np.asarray(values, np.float64)) for values in (first, second)]
    centred = [rank - rank.mean() for rank in ranks]
    size = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(f"{float((centred[0] * centred[1]).sum()) / size:.4g}") if size else 0.0


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: NDArray[np.float64] = (ends - (counts - 1) / 2)[inverse]
    return ranks


def _cost(row: Mapping[str, Any]) -> Cost:
    measured = row["measured"]
    return Cost(
        row["group"],
        row["format"],
        Estimate(**row["fisher"]),
        float(row["output_error"]),
        None if measured is None else Estimate(**measured),
    )
