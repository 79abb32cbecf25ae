"""Look before quantizing: what a model holds, what each format would cost. No weight is loaded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from zeropoint.checkpoint import Checkpoint
from zeropoint.machine import Machine
from zeropoint.planning.coverage import CoverageRow, coverage, quantized_fraction
from zeropoint.planning.uniform import uniform_plan
from zeropoint.views import layer_views

#: Share of the measured memory bandwidth that decoding reaches in practice; the rest goes to
#: attention, norms and the time between layers.
ROOFLINE = 1.0


@dataclass(frozen=True, slots=True)
class FormatSurvey:
    """One format's cost: bytes of all tensors, the decode bound in tokens per second (weights
    read once a token at the measured bandwidth; `None` when that was not measured), coverage."""

    format: str
    nbytes: int
    decode_bound: float | None
    quantized_fraction: float


@dataclass(frozen=True, slots=True)
class Survey:
    """What `zeropoint inspect` shows."""

    architecture: str
    model_type: str
    layers: int
    parameters: int
    parameters_by_kind: dict[str, int]
    source_bytes: int
    formats: tuple[FormatSurvey, ...]
    kept: tuple[CoverageRow, ...]
    peak_bytes: int


def survey(checkpoint: Checkpoint, formats: tuple[str, ...], *, machine: Machine, keep: tuple[str, ...] = ()) -> Survey:
    """Survey a checkpoint from its config and tensor headers alone."""
    infos = [info for info in checkpoint.parameters() if info.tied_to is None]
    kinds: Counter[str] = Counter()
    views = layer_views(checkpoint)
    largest = 0
    for view in views:
        kinds[view.kind] += view.shape[0] * view.shape[1]
        largest = max(largest, view.shape[0] * view.shape[1])
    parameters = sum(info.numel for info in infos)
    kinds["other (norms, biases, positions)"] = parameters - sum(kinds.values())
    rows, found = [], []
    for name in formats:
        plan = uniform_plan(checkpoint, name, keep=keep)
        rows = coverage(checkpoint, plan)
        embedding = sum(v.shape[0] * v.shape[1] for v in views if v.kind == "embedding" and not v.tied)
        read = plan.nbytes * (1 - embedding / max(parameters, 1))  # a lookup reads one row, not the table
        bound = machine.memory_bandwidth_gbps * 1e9 / read if machine.memory_bandwidth_gbps else None
        found.append(FormatSurvey(name, plan.nbytes, bound, quantized_fraction(rows)))
    return Survey(
        architecture=(checkpoint.config.architectures or [type(checkpoint.config).__name__])[0],
        model_type=checkpoint.model_type,
        layers=len(checkpoint.blocks()),
        parameters=parameters,
        parameters_by_kind=dict(kinds),
        source_bytes=sum(info.nbytes for info in infos),
        formats=tuple(found),
        kept=tuple(row for row in rows if row.decision == "kept"),
        peak_bytes=PEAK_COPIES * largest * 4,
    )


#: Float32 copies of the largest weight that round-to-nearest holds at once (weight, candidate, error, codes).
PEAK_COPIES = 6
