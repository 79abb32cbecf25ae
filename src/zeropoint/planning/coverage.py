"""What a plan does to every parameter of a model, and how much of it is quantized."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UsageError
from zeropoint.planning.uniform import choice_nbytes, layout_of
from zeropoint.values.plan import Plan


@dataclass(frozen=True, slots=True)
class CoverageRow:
    """One line of the coverage report; `bytes` are those in the artifact (0 for a tied name).

    `scheme` is the scheme's string, or the kept dtype (`bfloat16`).
    """

    name: str
    shape: tuple[int, ...]
    decision: Literal["quantized", "kept", "tied"]
    scheme: str
    bytes: int
    reason: str


def coverage(checkpoint: Checkpoint, plan: Plan) -> list[CoverageRow]:
    """Every parameter and persistent buffer once (stacked experts once each), in plan order, tied names last.

    Raises `UsageError` when the plan misses a weight of the model or names one it does not have.
    """
    check_complete(checkpoint, plan)
    infos = {info.name: info for info in checkpoint.parameters()}
    shapes = {view.name: view.shape for view in checkpoint.views()[0]}
    layout = layout_of(checkpoint)
    rows: list[CoverageRow] = []
    for name, choice in plan.choices.items():
        info = infos.get(name)
        size = choice_nbytes(name, choice, info, shapes.get(name), layout)
        if choice.scheme is not None:
            shape = shapes[name] if not choice.scheme.is_float or info is None else info.shape
            rows.append(CoverageRow(name, shape, "quantized", str(choice.scheme), size, choice.reason))
        elif info is not None:
            kept_as = str(info.dtype).removeprefix("torch.")
            rows.append(CoverageRow(name, info.shape, "kept", kept_as, size, choice.reason))
    for info in infos.values():
        if info.tied_to is not None:
            same = plan.choices[info.tied_to].scheme
            scheme = str(same) if same is not None else str(info.dtype).removeprefix("torch.")
            rows.append(
                CoverageRow(info.name, info.shape, "tied", scheme, 0, f"is {info.tied_to}, stored once")
            )
    return rows


def quantized_fraction(rows: list[CoverageRow]) -> float:
    """Parameters quantized / parameters (tied names counted once)."""
    own = [row for row in rows if row.decision != "tied"]
    total = sum(prod(row.shape) for row in own)
    return sum(prod(row.shape) for row in own if row.decision == "quantized") / max(total, 1)


def require_coverage(rows: list[CoverageRow], fraction: float) -> None:
    """Raise `UsageError` naming the largest kept weights when less than `fraction` is quantized."""
    got = quantized_fraction(rows)
    if got >= fraction:
        return
    kept = sorted((row for row in rows if row.decision == "kept"), key=lambda row: -prod(row.shape))[:3]
    names = ", ".join(f"{row.name} ({row.reason})" for row in kept)
    raise UsageError(
        f"only {got:.1%} of the parameters would be quantized, less than the {fraction:.1%} asked: {names}"
    )


def check_complete(checkpoint: Checkpoint, plan: Plan) -> None:
    """Raise `UsageError` unless the plan names every weight of the model exactly once and nothing else."""
    by_parameter: dict[str, list[str]] = {}
    for view in checkpoint.views()[0]:
        by_parameter.setdefault(view.parameter, []).append(view.name)
    known: set[str] = set()
    for info in checkpoint.parameters():
        if info.tied_to is not None:
            continue
        names = by_parameter.get(info.name, [])
        known |= {info.name, *names}
        whole, parts = info.name in plan.choices, [n for n in names if n != info.name and n in plan.choices]
        if whole and parts:
            raise UsageError(f"the plan decides {info.name} twice: as a whole and as {parts[0]}")
        all_parts = len(parts) == sum(1 for n in names if n != info.name)
        if not whole and (not parts or not all_parts):
            raise UsageError(f"the plan does not say what happens to {info.name}: make it for this model")
    strangers = [name for name in plan.choices if name not in known]
    if strangers:
        raise UsageError(
            f"the plan names {strangers[0]}, which this model does not have: make it for this model"
        )
