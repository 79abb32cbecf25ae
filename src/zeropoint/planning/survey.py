"""Survey of a checkpoint before quantization: its contents and the cost of each format, without loading weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from zeropoint.checkpoint import Checkpoint
from zeropoint.machine.detect import Machine
from zeropoint.planning.coverage import CoverageRow, coverage, quantized_fraction
from zeropoint.planning.uniform import uniform_plan

#: Float32 copies of the largest weight that round-to-nearest holds at once (weight, candidate, error, codes).
PEAK_COPIES = 6


@dataclass(frozen=True, slots=True)
class FormatSurvey:
    """The cost of one format.

    - `nbytes`: bytes of all tensors;
    - `decode_bound`: upper bound of decode speed in tokens per second, if each token reads all weights once at the
      measured memory bandwidth; None if the bandwidth was not measured;
    - `quantized_fraction`: fraction of the model's numbers that are quantized.
    """

    format: str
    nbytes: int
    decode_bound: float | None
    quantized_fraction: float


@dataclass(frozen=True, slots=True)
class Survey:
    """The content of `zeropoint inspect`; `peak_bytes` is an estimate of quantization's working memory."""

    architecture: str
    model_type: str
    layers: int
    parameters: int
    parameters_by_kind: dict[str, int]
    source_bytes: int
    formats: tuple[FormatSurvey, ...]
    kept: tuple[CoverageRow, ...]
    peak_bytes: int


def survey(
    checkpoint: Checkpoint, formats: Sequence[str], *, machine: Machine, keep: Sequence[str] = ()
) -> Survey:
    """Survey a checkpoint from its config and tensor headers alone; `keep` as in `uniform_plan`."""
    parameters = checkpoint.numel()
    views, _ = checkpoint.views()
    kinds: Counter[str] = Counter()
    for view in views:
        kinds[view.kind] += view.shape[0] * view.shape[1]
    kinds["other (norms, biases, positions)"] = parameters - sum(kinds.values())
    rows: list[CoverageRow] = []
    surveys = []
    for name in formats:
        plan = uniform_plan(checkpoint, name, keep=keep)
        rows = coverage(checkpoint, plan)
        read = plan.nbytes - _lookup_bytes(checkpoint, rows)
        bound = machine.memory_bandwidth_gbps * 1e9 / read if machine.memory_bandwidth_gbps else None
        surveys.append(FormatSurvey(name, plan.nbytes, bound, quantized_fraction(rows)))
    return Survey(
        architecture=(checkpoint.config.architectures or [type(checkpoint.config).__name__])[0],
        model_type=checkpoint.model_type,
        layers=len(checkpoint.blocks()),
        parameters=parameters,
        parameters_by_kind=dict(kinds),
        source_bytes=checkpoint.source_nbytes(),
        formats=tuple(surveys),
        kept=tuple(row for row in rows if row.decision == "kept"),
        peak_bytes=PEAK_COPIES * 4 * max((view.shape[0] * view.shape[1] for view in views), default=0),
    )


def _lookup_bytes(checkpoint: Checkpoint, rows: Sequence[CoverageRow]) -> int:
    """Return the bytes of embeddings without a tied head: a decode step reads one row of them, not all bytes."""
    tied = {info.tied_to for info in checkpoint.parameters()}
    lookups = {v.name for v in checkpoint.views()[0] if v.kind == "embedding" and v.parameter not in tied}
    return sum(row.bytes for row in rows if row.name in lookups)
