"""The coverage report: what a plan does to each parameter of a model, and which fraction of them it quantizes."""

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
    """One line of the coverage report: one parameter, view or tied name.

    `scheme` is the scheme's string, or the dtype of a kept parameter (`bfloat16`). `bytes` is the size in the artifact
    (0 for a tied name).
    """

    name: str
    shape: tuple[int, ...]
    decision: Literal["quantized", "kept", "tied"]
    scheme: str
    bytes: int
    reason: str


def coverage(checkpoint: Checkpoint, plan: Plan) -> list[CoverageRow]:
    """Return one row per parameter, persistent buffer and expert of a stack, in plan order, tied names last.

    Raises `UsageError` if the plan misses a weight of the model or names a weight that the model lacks.
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
            target_scheme = plan.choices[info.tied_to].scheme
            scheme = (
                str(target_scheme) if target_scheme is not None else str(info.dtype).removeprefix("torch.")
            )
            rows.append(
                CoverageRow(info.name, info.shape, "tied", scheme, 0, f"is {info.tied_to}, stored once")
            )
    return rows


def quantized_fraction(rows: list[CoverageRow]) -> float:
    """Return the fraction of the model's numbers that are quantized; tied weights count once."""
    own = [row for row in rows if row.decision != "tied"]
    total = sum(prod(row.shape) for row in own)
    return sum(prod(row.shape) for row in own if row.decision == "quantized") / max(total, 1)


def require_coverage(rows: list[CoverageRow], fraction: float) -> None:
    """Raise `UsageError` with the largest kept weights if less than `fraction` of the numbers is quantized."""
    quantized = quantized_fraction(rows)
    if quantized >= fraction:
        return
    largest_kept = sorted((row for row in rows if row.decision == "kept"), key=lambda row: -prod(row.shape))[
        :3
    ]
    names = ", ".join(f"{row.name} ({row.reason})" for row in largest_kept)
    raise UsageError(
        f"only {quantized:.1%} of the parameters would be quantized, less than the {fraction:.1%} asked: {names}"
    )


def check_complete(checkpoint: Checkpoint, plan: Plan) -> None:
    """Raise `UsageError` unless the plan names every weight of the model exactly once and nothing else."""
    by_parameter: dict[str, list[str]] = {}
    for view in checkpoint.views()[0]:
        by_parameter.setdefault(view.parameter, []).append(view.name)
    known_names: set[str] = set()
    for info in checkpoint.parameters():
        if info.tied_to is not None:
            continue
        names = by_parameter.get(info.name, [])
        known_names |= {info.name, *names}
        whole = info.name in plan.choices
        views_planned = [n for n in names if n != info.name and n in plan.choices]
        if whole and views_planned:
            raise UsageError(f"the plan decides {info.name} twice: as a whole and as {views_planned[0]}")
        all_parts = len(views_planned) == sum(1 for n in names if n != info.name)
        if not whole and (not views_planned or not all_parts):
            raise UsageError(f"the plan does not say what happens to {info.name}: make it for this model")
    unknown = [name for name in plan.choices if name not in known_names]
    if unknown:
        raise UsageError(
            f"the plan names {unknown[0]}, which this model does not have: make it for this model"
        )
