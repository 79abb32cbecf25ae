"""`check`: does an artifact still say what its model says? A verdict with intervals, not a feeling.

A bound is met only when the *whole* 95 % interval is inside it: a text too short to decide fails the
gate, and the verdict says so. What decides is paired with the float32 reference on the same tokens.

Default bounds, used when the caller gives none, by the narrowest weight format of the artifact. They
are bounds for "still the same model", from what round-to-nearest and better methods reach on small
models; large models stay well inside them:

    ======  =============  ===================
    bits    max mean KL    max perplexity rise
    ======  =============  ===================
    16      0.005          0.5 %
    8       0.03           3 %
    5-7     0.10           10 %
    4       0.25           25 %
    2-3     0.50           60 %
    ======  =============  ===================
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from zeropoint.artifact import update_card
from zeropoint.errors import ArtifactError, UsageError
from zeropoint.evaluate import client
from zeropoint.evaluate.accuracy import TaskRequest, TaskResult, measure_accuracy
from zeropoint.evaluate.compare import noise_floor, quality_request
from zeropoint.evaluate.models import describe
from zeropoint.evaluate.progress import Progress, part
from zeropoint.evaluate.windows import DEFAULT_CONTEXT
from zeropoint.files import identity
from zeropoint.files.json_file import CARD_NAME

logger = logging.getLogger(__name__)

# (widest bits of the row, max mean KL in nats, max relative rise of perplexity)
DEFAULT_BOUNDS = ((3, 0.50, 0.60), (4, 0.25, 0.25), (7, 0.10, 0.10), (8, 0.03, 0.03), (32, 0.005, 0.005))
NO_DIGESTS = (
    "an older release made this artifact, and its card named no digests: what was measured before may be of other "
    "weights; this verdict names those that it is of"
)
# Of the progress of a check with tasks, about.
_TASKS_SHARE = 0.6


@dataclass(frozen=True, slots=True)
class BoundResult:
    """One bound and what was measured. `direction` says on which side of `bound` it must stay."""

    metric: str
    direction: Literal["below", "above"]
    bound: float
    value: float
    low: float
    high: float
    passed: bool
    detectable: float
    """The smallest change of this metric that this text would show 80 % of the time."""
    remedy: str = "the text is too short to decide"
    """What to say when the bound lies inside the interval."""

    @property
    def undecided(self) -> bool:
        """The bound lies inside the interval: more text could decide either way."""
        return not self.passed and self.low < self.bound < self.high

    def sentence(self) -> str:
        """The result in words, numbers in the metric's own unit."""
        end = "upper" if self.direction == "below" else "lower"
        limit = self.high if self.direction == "below" else self.low
        state = "meets" if self.passed else "misses"
        tail = f"; {self.remedy}" if self.undecided else ""
        return (
            f"{self.metric} {self.value:.4g} ({self.low:.4g} to {self.high:.4g}): its {end} end {limit:.4g} "
            f"{state} the bound {self.bound:.4g}{tail}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer for one artifact, complete enough to be kept in its card."""

    artifact: str
    against: str
    passed: bool
    bounds: tuple[BoundResult, ...]
    bounds_are_defaults: bool
    noise_floor_kl: float
    minimal_detectable_kl: float
    quality: Mapping[str, Any]
    scored_tokens: int
    units: int
    unit_kind: str
    text: str
    text_digest: str
    context: int
    seed: int
    tasks: tuple[TaskResult, ...] = ()
    judged: Mapping[str, str] = field(default_factory=dict)
    """The digests of the tensors and of the config.json that this verdict is about."""
    had_digests: bool = True
    """Whether the card named digests, which artifacts of older releases do not."""

    def sentences(self) -> list[str]:
        """What a person needs to read, the decision first."""
        first = "Passed" if self.passed else "Failed"
        source = "default bounds for this format" if self.bounds_are_defaults else "the bounds given"
        return [
            f"{first}: {self.artifact} against {self.against}, {source}.",
            *(bound.sentence() for bound in self.bounds),
            *(task.sentence() for task in self.tasks),
            *(() if self.had_digests else (NO_DIGESTS,)),
            f"noise floor: mean KL {self.noise_floor_kl:.2g} (the reference in 16 bits against itself)",
            f"smallest change of mean KL this text can show: {self.minimal_detectable_kl:.2g} "
            f"({self.scored_tokens} tokens, {self.units} {self.unit_kind})",
        ]

    def to_json(self) -> dict[str, Any]:
        said = asdict(self) | {"bounds": [asdict(bound) for bound in self.bounds]}
        del said["had_digests"]
        return said

    def write(self, folder: str | Path, **more: Any) -> None:
        """Write the verdict, and `more` beside it, into the card of the artifact that it is about.

        Raises `ArtifactError` where that is not what was judged any more.
        """
        where = Path(folder)
        if _identity(where).judged != self.judged:
            raise ArtifactError(
                f"{where} changed while it was judged, so no verdict is written: judge it again"
            )
        found = self.to_json()
        quality = found.pop("quality")
        update_card(where, quality=quality, verdict=found | more, judged=self.judged)


def check(
    artifact: str,
    against: str,
    *,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_top1: float | None = None,
    text: str | None = None,
    tokens: int = 8192,
    context: int = DEFAULT_CONTEXT,
    threads: int = 2,
    engine: str = "auto",
    seed: int = 0,
    tasks: TaskRequest | None = None,
    max_accuracy_drop: float | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Measure an artifact against the model it came from and judge it.

    `max_kl` bounds the mean KL in nats per token, `max_perplexity_increase` the relative rise
    (0.01 = 1 %), `min_top1` the share of tokens whose most likely word stays, `max_accuracy_drop` the fall of
    accuracy on each of `tasks` (0.02 = two more wrong answers in 100). With none of them the
    module's default bounds apply. What `against` alone decides is kept in the folder `keep` for other artifacts of it,
    and gives the same numbers (`references.py`). Raises UsageError for bounds out of range, `ArtifactError` for an
    artifact whose weights, config or card are not what its card says, and the models' own errors.
    """
    _check_bounds(max_kl, max_perplexity_increase, min_top1)
    _check_accuracy_bound(max_accuracy_drop, tasks)
    reference, candidate = describe(against, [artifact])
    standing = _identity(Path(candidate.path))
    given = any(b is not None for b in (max_kl, max_perplexity_increase, min_top1, max_accuracy_drop))
    if not given:
        max_kl, max_perplexity_increase = default_bounds(candidate.smallest_bits)
    request = quality_request(
        [reference, candidate],
        engine=engine,
        threads=threads,
        text=text,
        tokens=tokens,
        context=context,
        seed=seed,
    )
    request["keep"] = None if keep is None else str(keep)
    share = 0.0 if tasks is None else _TASKS_SHARE
    answers: tuple[TaskResult, ...] = ()
    if tasks is not None:  # first: a task that cannot be read should not cost the time of all the rest
        step = part(progress, 0.0, share)
        answers = measure_accuracy(reference, candidate, tasks, engine=engine, threads=threads, progress=step)
    step = part(progress, share, 1 - share)
    found = client.call(request, threads=threads, subject=candidate.name, progress=step)
    entry = found["candidates"][candidate.name]
    bounds = judge(entry, max_kl=max_kl, max_perplexity_increase=max_perplexity_increase, min_top1=min_top1)
    bounds += judge_accuracy(answers, max_accuracy_drop)
    verdict = Verdict(
        artifact=candidate.name,
        against=reference.name,
        passed=all(bound.passed for bound in bounds),
        bounds=bounds,
        bounds_are_defaults=not given,
        noise_floor_kl=noise_floor(reference.name, found)["kl_divergence"]["value"],
        minimal_detectable_kl=entry["detectable_kl"],
        quality=entry,
        tasks=answers,
        judged=standing.judged,
        had_digests=standing.known,
        **{
            key: found[key]
            for key in ("scored_tokens", "units", "unit_kind", "text", "text_digest", "context", "seed")
        },
    )
    logger.info("%s", verdict.sentences()[0])
    return verdict


def _identity(folder: Path) -> _Judged:
    """What is in an artifact's folder, every byte read; nothing for another runtime's file, which has no card."""
    if not (folder / CARD_NAME).is_file():
        return _Judged({}, known=True)
    found = identity.verify(folder)
    return _Judged({"tensors": found.tensors, "config": identity.config_digest(folder)}, known=found.known)


class _Judged(NamedTuple):
    judged: Mapping[str, str]
    known: bool


def default_bounds(bits: int) -> tuple[float, float]:
    """Maximal mean KL and relative rise of perplexity for the narrowest weight format `bits`."""
    return next((kl, rise) for widest, kl, rise in DEFAULT_BOUNDS if bits <= widest)


def judge(
    entry: Mapping[str, Any],
    *,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_top1: float | None = None,
) -> tuple[BoundResult, ...]:
    """Hold a worker's quality entry against the bounds that are not None."""
    rows: list[BoundResult] = []

    def add(
        metric: str,
        found: Mapping[str, float],
        bound: float | None,
        direction: Literal["below", "above"],
        shift: float,
    ) -> None:
        if bound is None:
            return
        value, low, high = (found[key] - shift for key in ("value", "low", "high"))
        passed = high <= bound if direction == "below" else low >= bound
        rows.append(BoundResult(metric, direction, bound, value, low, high, passed, found["detectable"]))

    add("kl_divergence", entry["kl_divergence"], max_kl, "below", 0.0)
    add("perplexity_increase", entry["perplexity_ratio"], max_perplexity_increase, "below", 1.0)
    add("top1_agreement", entry["top1_agreement"], min_top1, "above", 0.0)
    return tuple(rows)


def judge_accuracy(tasks: Sequence[TaskResult], bound: float | None) -> tuple[BoundResult, ...]:
    """Hold each task's fall of accuracy against the bound: non-inferiority. All must meet it, so more tasks make a
    wrong pass no likelier."""
    if bound is None:
        return ()
    rows = []
    for task in tasks:
        found = task.paired
        needed = found.items_for(bound)
        remedy = f"{found.n} items are too few to decide" + (f", about {needed} would" if needed else "")
        passed = found.high <= bound
        rows.append(
            BoundResult(
                f"accuracy_drop {task.task}",
                "below",
                bound,
                found.drop,
                found.low,
                found.high,
                passed,
                found.detectable,
                remedy,
            )
        )
    return tuple(rows)


def _check_accuracy_bound(max_accuracy_drop: float | None, tasks: TaskRequest | None) -> None:
    if max_accuracy_drop is None:
        return
    if tasks is None:
        raise UsageError("a bound on the drop of accuracy needs tasks to measure it on")
    if not 0 < max_accuracy_drop < 1:
        raise UsageError(
            f"the bound on the drop of accuracy is a share between 0 and 1, not {max_accuracy_drop}"
        )


def _check_bounds(
    max_kl: float | None, max_perplexity_increase: float | None, min_top1: float | None
) -> None:
    if max_kl is not None and not max_kl > 0:
        raise UsageError(f"the bound on mean KL must be above 0 nats, not {max_kl}")
    if max_perplexity_increase is not None and not max_perplexity_increase > 0:
        raise UsageError(
            f"the bound on the rise of perplexity must be above 0, not {max_perplexity_increase}"
        )
    if min_top1 is not None and not 0 < min_top1 <= 1:
        raise UsageError(f"the bound on top-1 agreement is a share between 0 and 1, not {min_top1}")
