"""The gate (`check`): a verdict on whether an artifact still predicts what its model predicts.

The artifact and the float32 reference model read the same tokens and are compared token by token. A bound is met only
when the *whole* 95 % interval lies inside the bound. A text too short to decide fails the gate; the verdict says so.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from zeropoint.evaluate import needs
from zeropoint.evaluate.compare import noise_floor, quality_request
from zeropoint.evaluate.gate.bounds import (
    check_accuracy_bound,
    check_bounds,
    default_bounds,
    judge,
    judge_accuracy,
)
from zeropoint.evaluate.gate.verdict import Verdict, judged_digests
from zeropoint.evaluate.model_description import describe
from zeropoint.evaluate.quality.windows import DEFAULT_CONTEXT
from zeropoint.evaluate.tasks.accuracy import TaskRequest, TaskResult, measure_accuracy
from zeropoint.evaluate.worker import client
from zeropoint.machine.cores import default_threads
from zeropoint.progress import Progress, part

logger = logging.getLogger(__name__)

# Approximate share of a check's running time that its tasks take, for the progress bar.
_TASKS_SHARE = 0.6


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
    streamed: bool | None = None,
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

    If none of the four is given, the default bounds of `bounds.py` on KL divergence and perplexity apply. `keep` is a
    cache folder for the float32 reference model's results (`worker/reference_cache.py`). Later checks against the same
    model read the results from there, and give the same numbers as without the cache. At least `tokens` tokens are
    scored, if the text has so many, in windows of `context` tokens. `streamed`: whether the float32 reference model
    runs block by block; if it is None, the model does so where it does not fit into the free memory.

    Raises `UsageError` if a bound is out of range or memory is too small, `ArtifactError` if the artifact's weights or
    config differ from its card, and the errors of `zeropoint.runtime.open_runner` if a model cannot be loaded.
    """
    threads = default_threads(threads)
    check_bounds(max_kl, max_perplexity_increase, min_top1)
    check_accuracy_bound(max_accuracy_drop, tasks)
    reference, candidate = describe(against, [artifact], revision=revision)
    digests = judged_digests(Path(candidate.path))
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
        streamed=streamed,
    )
    if tasks is not None:
        needs.refuse_large_run(reference, "leave the tasks out (--tasks)", exact=True)
    request = replace(request, keep=None if keep is None else str(keep))
    share = 0.0 if tasks is None else _TASKS_SHARE
    answers: tuple[TaskResult, ...] = ()
    if tasks is not None:  # first, so that an unreadable task fails before the long quality run
        step = part(progress, 0.0, share)
        answers = measure_accuracy(reference, candidate, tasks, engine=engine, threads=threads, progress=step)
    step = part(progress, share, 1 - share)
    run = client.call(request, threads=threads, subject=candidate.name, progress=step)
    entry = run.candidates[candidate.name]
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
        judged=digests.by_name,
        had_digests=digests.in_card,
        scored_tokens=run.scored_tokens,
        units=run.units,
        unit_kind=run.unit_kind,
        text=run.text,
        text_digest=run.text_digest,
        context=run.context,
        seed=run.seed,
    )
    logger.info("%s", verdict.sentences()[0])
    return verdict
