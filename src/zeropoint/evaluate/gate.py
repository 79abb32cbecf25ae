"""The gate (`check`): a verdict on whether an artifact still predicts what its model predicts.

The artifact and the float32 reference model read the same tokens, so every difference is paired. A bound is met only
when the *whole* 95 % interval lies inside the bound. A text too short to decide fails the gate; the verdict says so.
The ends of the intervals, `low` and `high`, come from evaluate/statistics.py for the metrics of a text, and from
evaluate/paired.py for the accuracy on tasks.

Without bounds from the caller, the default bounds below apply. The row is chosen by the bits of the artifact's
narrowest weight format (`smallest_bits` in evaluate/models.py). The default bounds mean "still the same model":
round-to-nearest and better methods meet them on small models, and large models stay well inside them.

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
from zeropoint.machine.cores import default_threads

logger = logging.getLogger(__name__)

# (widest bits of the row, max mean KL in nats, max relative rise of perplexity)
DEFAULT_BOUNDS = ((3, 0.50, 0.60), (4, 0.25, 0.25), (7, 0.10, 0.10), (8, 0.03, 0.03), (32, 0.005, 0.005))
NO_DIGESTS = (
    "an older release made this artifact, and its card named no digests: earlier measurements in the card may be of "
    "other weights; this verdict records the digests of the weights it judged"
)
# Approximate share of a check's running time that its tasks take, for the progress bar.
_TASKS_SHARE = 0.6


#: Metric -> its name in a sentence.
_WORDS = {
    "kl_divergence": "mean KL divergence",
    "perplexity_increase": "relative increase of perplexity",
    "top1_agreement": "top-1 agreement",
    "accuracy_drop": "drop of accuracy on",
}


def _words(metric: str) -> str:
    """Return a metric's name in words; that of an accuracy drop is followed by its task."""
    name, _, task = metric.partition(" ")
    return f"{_WORDS.get(name, name)} {task}".rstrip()


@dataclass(frozen=True, slots=True)
class BoundResult:
    """One bound and the measured value. The interval must lie on the `direction` side of `bound`."""

    metric: str
    direction: Literal["below", "above"]
    bound: float
    value: float
    low: float
    high: float
    passed: bool
    detectable: float
    """The smallest true change of this metric that a text like this one detects in 80 % of cases."""
    remedy: str = "the text is too short to decide"
    """The advice to print when the bound lies inside the interval."""

    @property
    def undecided(self) -> bool:
        """Return whether the bound lies inside the interval, so that more text could decide either way."""
        return not self.passed and self.low < self.bound < self.high

    def sentence(self) -> str:
        """Return the result as a sentence, with numbers in the metric's own unit."""
        end = "upper" if self.direction == "below" else "lower"
        limit = self.high if self.direction == "below" else self.low
        state = "meets" if self.passed else "misses"
        tail = f"; {self.remedy}" if self.undecided else ""
        return (
            f"{_words(self.metric)} {self.value:.4g} (95 % interval {self.low:.4g} to {self.high:.4g}): "
            f"its {end} end {limit:.4g} "
            f"{state} the bound {self.bound:.4g}{tail}"
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer for one artifact, with everything that the artifact's card stores of the check."""

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
    """Digests of the judged artifact: `tensors` (all tensors) and `config` (config.json)."""
    had_digests: bool = True
    """Whether the artifact's card named digests. Cards of older releases name none."""

    def sentences(self) -> list[str]:
        """Return the verdict as sentences for a person, the decision first."""
        first = "Passed" if self.passed else "Failed"
        source = "default bounds for this format" if self.bounds_are_defaults else "the bounds given"
        return [
            f"{first}: {self.artifact} against {self.against}, {source}.",
            *(bound.sentence() for bound in self.bounds),
            *(task.sentence() for task in self.tasks),
            *(() if self.had_digests else (NO_DIGESTS,)),
            f"noise floor: mean KL {self.noise_floor_kl:.2g} (the original model in 16 bits against itself in float32)",
            f"smallest change of mean KL this text can show: {self.minimal_detectable_kl:.2g} "
            f"({self.scored_tokens} tokens, {self.units} {self.unit_kind})",
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the verdict as JSON values, without `had_digests`."""
        fields = asdict(self) | {"bounds": [asdict(bound) for bound in self.bounds]}
        del fields["had_digests"]
        return fields

    def write(self, folder: str | Path, **more: Any) -> None:
        """Write the verdict and the entries `more` into the card of the artifact in `folder`.

        Raises `ArtifactError` if the artifact's tensors or config changed since they were judged.
        """
        where = Path(folder)
        if _identity(where).judged != self.judged:
            raise ArtifactError(
                f"{where} changed while it was judged, so no verdict is written: judge it again"
            )
        fields = self.to_json()
        quality = fields.pop("quality")
        update_card(where, quality=quality, verdict=fields | more, judged=self.judged)


def check(
    artifact: str,
    against: str,
    *,
    revision: str | None = None,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_top1: float | None = None,
    text: str | None = None,
    tokens: int = 8192,
    context: int = DEFAULT_CONTEXT,
    threads: int | None = None,
    engine: str = "auto",
    seed: int = 0,
    tasks: TaskRequest | None = None,
    max_accuracy_drop: float | None = None,
    keep: Path | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Measure an artifact against its source model `against` and return the verdict.

    - `max_kl`: bound on the mean KL divergence, in nats per token.
    - `max_perplexity_increase`: bound on the relative rise of perplexity (0.01 = 1 %).
    - `min_top1`: bound on the share of tokens with an unchanged most likely next token.
    - `max_accuracy_drop`: bound on the fall of accuracy on each of `tasks` (0.02 = two more wrong answers in 100).

    Without any of the four, the module's default bounds apply. `keep` is a cache folder for the float32 reference
    model's results (`references.py`); later checks of other artifacts of the same model read them and give the same
    numbers. `tokens` is the least number of scored tokens, `context` the window length in tokens.

    Raises `UsageError` if a bound is out of range, `ArtifactError` if the artifact's weights or config differ from its
    card, and the models' own errors.
    """
    threads = default_threads(threads)
    _check_bounds(max_kl, max_perplexity_increase, min_top1)
    _check_accuracy_bound(max_accuracy_drop, tasks)
    reference, candidate = describe(against, [artifact], revision=revision)
    identity_before = _identity(Path(candidate.path))
    has_bounds = any(b is not None for b in (max_kl, max_perplexity_increase, min_top1, max_accuracy_drop))
    if not has_bounds:
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
    if tasks is not None:  # first, so that an unreadable task fails before the long quality run
        step = part(progress, 0.0, share)
        answers = measure_accuracy(reference, candidate, tasks, engine=engine, threads=threads, progress=step)
    step = part(progress, share, 1 - share)
    run = client.call(request, threads=threads, subject=candidate.name, progress=step)
    entry = run["candidates"][candidate.name]
    bounds = judge(entry, max_kl=max_kl, max_perplexity_increase=max_perplexity_increase, min_top1=min_top1)
    bounds += judge_accuracy(answers, max_accuracy_drop)
    verdict = Verdict(
        artifact=candidate.name,
        against=reference.name,
        passed=all(bound.passed for bound in bounds),
        bounds=bounds,
        bounds_are_defaults=not has_bounds,
        noise_floor_kl=noise_floor(reference.name, run)["kl_divergence"]["value"],
        minimal_detectable_kl=entry["detectable_kl"],
        quality=entry,
        tasks=answers,
        judged=identity_before.judged,
        had_digests=identity_before.known,
        **{
            key: run[key]
            for key in ("scored_tokens", "units", "unit_kind", "text", "text_digest", "context", "seed")
        },
    )
    logger.info("%s", verdict.sentences()[0])
    return verdict


def _identity(folder: Path) -> _Judged:
    """Return the digests of an artifact's folder, from every byte; no digests for an external runtime's file."""
    if not (folder / CARD_NAME).is_file():
        return _Judged({}, known=True)
    digests = identity.verify(folder)
    return _Judged(
        {"tensors": digests.tensors, "config": identity.config_digest(folder)}, known=digests.known
    )


class _Judged(NamedTuple):
    """Digests by name, and whether the artifact's card already named digests."""

    judged: Mapping[str, str]
    known: bool


def default_bounds(bits: int) -> tuple[float, float]:
    """Return the default bounds (mean KL in nats, relative perplexity rise) for a narrowest weight of `bits` bits."""
    return next((kl, rise) for widest, kl, rise in DEFAULT_BOUNDS if bits <= widest)


def judge(
    entry: Mapping[str, Any],
    *,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_top1: float | None = None,
) -> tuple[BoundResult, ...]:
    """Return one result for each bound that is not None.

    `entry` is what the worker measured for the artifact. It maps `kl_divergence`, `perplexity_ratio` and
    `top1_agreement` to `{"value", "low", "high", "detectable", ...}` (`Estimate.to_json` in statistics.py).
    """
    rows: list[BoundResult] = []

    def add(
        metric: str,
        estimate: Mapping[str, float],
        bound: float | None,
        direction: Literal["below", "above"],
        shift: float,
    ) -> None:
        """Append the result of one bound; `shift` is subtracted from the estimate."""
        if bound is None:
            return
        value, low, high = (estimate[key] - shift for key in ("value", "low", "high"))
        passed = high <= bound if direction == "below" else low >= bound
        rows.append(BoundResult(metric, direction, bound, value, low, high, passed, estimate["detectable"]))

    add("kl_divergence", entry["kl_divergence"], max_kl, "below", 0.0)
    add("perplexity_increase", entry["perplexity_ratio"], max_perplexity_increase, "below", 1.0)
    add("top1_agreement", entry["top1_agreement"], min_top1, "above", 0.0)
    return tuple(rows)


def judge_accuracy(tasks: Sequence[TaskResult], bound: float | None) -> tuple[BoundResult, ...]:
    """Return one non-inferiority result per task: the upper end of its accuracy drop's interval against `bound`.

    The gate passes only if every task meets the bound, so more tasks do not make a wrong pass more likely.
    """
    if bound is None:
        return ()
    rows = []
    for task in tasks:
        paired = task.paired
        needed = paired.items_for(bound)
        remedy = f"{paired.n} items are too few to decide" + (f", about {needed} would" if needed else "")
        passed = paired.high <= bound
        rows.append(
            BoundResult(
                f"accuracy_drop {task.task}",
                "below",
                bound,
                paired.drop,
                paired.low,
                paired.high,
                passed,
                paired.detectable,
                remedy,
            )
        )
    return tuple(rows)


def _check_accuracy_bound(max_accuracy_drop: float | None, tasks: TaskRequest | None) -> None:
    """Raise `UsageError` if the bound is out of range or there are no tasks to measure accuracy on."""
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
    """Raise `UsageError` if a bound is out of range."""
    if max_kl is not None and not max_kl > 0:
        raise UsageError(f"the bound on mean KL must be above 0 nats, not {max_kl}")
    if max_perplexity_increase is not None and not max_perplexity_increase > 0:
        raise UsageError(
            f"the bound on the rise of perplexity must be above 0, not {max_perplexity_increase}"
        )
    if min_top1 is not None and not 0 < min_top1 <= 1:
        raise UsageError(f"the bound on top-1 agreement is a share between 0 and 1, not {min_top1}")
