"""The sensitivity table: the loss of each group of weights at each format, if that group alone is quantized.

`quantization.sensitivity` measures the table; planners read `Sensitivity.loss[group][format]`, an `Estimate` with its
standard error. Every loss is in nats per token, so losses of different groups add up to first order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zeropoint.errors import UsageError, reason
from zeropoint.files.json_file import parse_json

SENSITIVITY_VERSION = 1


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over windows of text and its standard error, which is 0 for a single window."""

    value: float
    standard_error: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Estimate:
        """Return the mean and standard error of one number per window, rounded to six digits."""
        values = np.asarray(samples, np.float64)
        spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
        return cls(float(f"{values.mean():.6g}"), float(f"{spread:.6g}"))


@dataclass(frozen=True, slots=True)
class Group:
    """Weights that must share a format: weights of one module with the same input (q/k/v, gate/up), the experts of one
    stack, or a tied embedding and head.

    `block` is the index of the transformer block, None outside the blocks; `kind` (`q+k+v`) is the column of the heat
    map; `parameters` counts the weights' elements.
    """

    name: str
    weights: tuple[str, ...]
    block: int | None
    kind: str
    parameters: int


@dataclass(frozen=True, slots=True)
class Cost:
    """The loss of one group at one format, with all other weights in float.

    - `fisher`: KL divergence predicted to second order, nats per token: half the squared product of the loss's gradient
      by the group's output and the output's error, for labels drawn from the model itself;
    - `output_error`: ||y' - y|| / ||y|| with y' the quantized and y the float outputs of the group;
    - `measured`: measured KL divergence, nats per token; None if the group was not measured.
    """

    group: str
    format: str
    fisher: Estimate
    output_error: float
    measured: Estimate | None = None


@dataclass(frozen=True, slots=True)
class InputShape:
    """Outlier statistics of a group's input.

    - `max_ratio`: the largest channel maximum divided by the median channel maximum;
    - `kurtosis`: median over channels of the fourth moment divided by the squared second moment (normal: 3);
    - `token_kurtosis`: the same ratio over all channels together, large if there are outlier channels;
    - `worst_channel`: index of the channel with the largest maximum.
    """

    group: str
    max_ratio: float
    kurtosis: float
    token_kurtosis: float
    worst_channel: int


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """The whole table.

    - `key`: digest of the model, formats, text and versions of the measurement;
    - `agreement`: Spearman's rank correlation for a pair of scores at a format ("fisher ~ measured, int4");
    - `unreached`: groups that no token of the text reached (experts), so their costs are unknown.
    """

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
        """Return `loss[group][format]` in nats per token: the measured KL divergence, else the predicted one."""
        table: dict[str, dict[str, Estimate]] = {}
        for cost in self.costs:
            table.setdefault(cost.group, {})[cost.format] = cost.measured or cost.fisher
        return table

    def fragile(self, format: str) -> list[Cost]:
        """Return the costs at one format, sorted by predicted KL divergence, largest first."""
        costs = [cost for cost in self.costs if cost.format == format]
        return sorted(costs, key=lambda cost: (-cost.fisher.value, cost.group))

    def to_json(self) -> dict[str, Any]:
        return {"sensitivity_version": SENSITIVITY_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sensitivity:
        """Return the table that `to_json` of this release wrote. Raises `UsageError` for anything else."""
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
    """Read a sensitivity file. Raises `UsageError` if it cannot be read or is malformed."""
    try:
        data = parse_json(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        raise UsageError(f"the sensitivity file {path} cannot be read: {reason(cause)}") from cause
    return Sensitivity.from_json(data)


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return Spearman's rank correlation of two scores of the same items, ties at their mean rank.

    Returns 0 if either score is constant.
    """
    from scipy.stats import spearmanr

    if min(len(set(first)), len(set(second))) < 2:
        return 0.0
    return float(f"{spearmanr(first, second).statistic:.4g}")


def _cost(row: Mapping[str, Any]) -> Cost:
    measured = row["measured"]
    return Cost(
        row["group"],
        row["format"],
        Estimate(**row["fisher"]),
        float(row["output_error"]),
        None if measured is None else Estimate(**measured),
    )
