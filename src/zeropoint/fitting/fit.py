"""`fit`: find a plan within a budget, quantize the model by the plan and check the artifact, or refuse with a reason.

    candidates   quantize and pack the model in each format (seconds)
    costs        compute the bytes, and measure the seconds per token and the loss, of each group in each format
    search       find the best plan within the budget; run it from end to end
    quantize     carry out the plan
    trial        measure the loss in a fresh process on other text; too near the bound: search again, tighter
    gate         measure the loss in a fresh process, once, on text that no decision used; then the speed

The text is split by documents into three parts: for planning, for trials, for the gate.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import GateError, UsageError
from zeropoint.evaluate import Verdict, bench, check
from zeropoint.evaluate.quality.windows import EvaluationText
from zeropoint.files import documents
from zeropoint.fitting.candidates import WIDE
from zeropoint.fitting.planner import Planner
from zeropoint.fitting.refusals import not_needed, refusal
from zeropoint.fitting.result import OBJECTIVES, Fit, Settings
from zeropoint.machine.detect import Machine
from zeropoint.progress import Progress
from zeropoint.quantization import quantize_checkpoint, refuse_output
from zeropoint.runtime import fitting_engine
from zeropoint.sources.notes import tell
from zeropoint.values.budget import Budget

#: Maximum number of new plans, each with a tighter loss target, after a failed trial.
RETRIES = 2
#: How many upper half-widths of the trial's interval must fit between the trial's value and the bound: one for the
#: gate's own interval, and one because the gate reads other text.
HALVES = 2.0
#: Without a bound on the loss in the budget, the gate's bound on mean KL is the predicted KL times this factor.
PROMISE = 1.25


def fit(
    source: str | Path, out: str | Path | None, budget: Budget, settings: Settings, step: Progress
) -> Fit:
    """Find a plan for the model `source` within `budget`; with `out`, write the artifact there and check it.

    Nothing is written when the answer is a refusal. Raises `UsageError` if the budget is empty, the objective is
    unknown or `out` exists, `UnsupportedError` if the native engine does not run the model, and the errors of each
    step.
    """
    if budget.is_empty:
        raise UsageError(
            "the budget is empty: bound the memory, the loss as KL or perplexity, or the speed; "
            "a bound on accuracy is for the gate only"
        )
    if budget.max_accuracy_drop is not None and settings.tasks is None:
        raise UsageError("a bound on accuracy needs tasks to measure it on")
    if settings.objective is not None and settings.objective not in OBJECTIVES:
        raise UsageError(f"there is no objective {settings.objective!r}: use {', '.join(OBJECTIVES)}")
    if out is not None:
        refuse_output(out, overwrite=settings.overwrite)
    checkpoint = open_checkpoint(source, revision=settings.revision)
    tell(checkpoint.notes)
    try:
        planner = Planner(checkpoint, budget, settings, step)
    except GateError as cause:
        return Fit(budget, str(cause))
    try:
        return _decide(planner, None if out is None else Path(out))
    finally:
        planner.keep()


def _decide(planner: Planner, out: Path | None) -> Fit:
    """Return the answer: refuse, or search for a plan, carry it out and check it."""
    budget, settings = planner.budget, planner.settings
    if (no := refusal(planner.search, budget)) is not None:
        return replace(planner.answer(None), refusal=no)
    if not settings.anyway and (no := not_needed(budget, planner.uniform_points()[WIDE])) is not None:
        return replace(planner.answer(None), refusal=no, unneeded=True)
    margin = planner.known.margin
    point = planner.best(margin)
    if point is None and margin < 1:
        # The margin comes from another plan's trial, which is no reason to refuse.
        margin = 1.0
        point = planner.best(margin)
    if point is None:
        return replace(planner.answer(None), refusal=planner.nothing_found())
    answer = planner.answer(point)
    if out is None:
        return planner.timed(answer, point)
    answer = _carry_out(planner, out, answer, again=False)
    for attempt in range(RETRIES + 1 if budget.bounds_loss else 0):
        room = _room(_judge(planner, answer, planner.trial_text))
        margin = min(1.0, margin * room)
        planner.known.margin = margin
        tighter = None if room >= 1 or attempt == RETRIES else planner.best(margin, again=True)
        if tighter is None:  # the last plan stays, and the gate judges it
            break
        point = tighter
        answer = _carry_out(planner, out, planner.answer(point), again=True)
    return _measure_speed(planner, planner.timed(_gate(planner, answer), point))


def _carry_out(planner: Planner, out: Path, answer: Fit, *, again: bool) -> Fit:
    """Quantize the model by the answer's plan into the folder `out`; `again` overwrites an earlier try."""
    assert answer.plan is not None
    settings = planner.settings
    checkpoint = planner.candidates.checkpoint
    summary = quantize_checkpoint(
        checkpoint,
        out,
        plan=answer.plan,
        overwrite=settings.overwrite or again,
        machine=Machine.detect().lasting(),
        calibration=planner.calibration,
        resumable=False,
    )
    warnings = [text for text in summary.warnings if text not in checkpoint.notes]  # those are told already
    return replace(answer, path=out, warnings=warnings)


def _gate(planner: Planner, answer: Fit) -> Fit:
    """Judge the artifact on the gate's text and tasks, and write the verdict into the card, passed or failed."""
    settings = planner.settings
    verdict = _judge(
        planner,
        answer,
        planner.gate_text,
        tasks=settings.tasks,
        max_accuracy_drop=answer.budget.max_accuracy_drop,
    )
    judged = replace(answer, verdict=verdict)
    _write_verdict(judged)
    return judged


def _judge(planner: Planner, answer: Fit, text: EvaluationText, **more: Any) -> Verdict:
    """Check the artifact on `text`; without a bound on the loss, against the predicted KL times `PROMISE`."""
    assert answer.predicted is not None
    budget, settings = answer.budget, planner.settings
    max_kl = budget.max_kl
    if not budget.bounds_loss:
        max_kl = max(answer.predicted.kl * PROMISE, 1e-3)
    with tempfile.TemporaryDirectory(prefix="zeropoint-") as folder:
        file = Path(folder) / "text.txt"
        file.write_text(documents.join(text.documents), encoding="utf-8")
        verdict = check(
            str(answer.path),
            str(planner.candidates.checkpoint.path),
            max_kl=max_kl,
            max_perplexity_increase=budget.max_perplexity_increase,
            text=str(file),
            tokens=settings.gate_tokens,
            threads=settings.threads,
            seed=settings.seed,
            keep=settings.cache,
            **more,
        )
    return replace(verdict, text=text.source)


def _measure_speed(planner: Planner, answer: Fit) -> Fit:
    """Measure the final artifact's speed in a fresh process, unless the plan is for another machine."""
    if planner.target.described is not None:
        return answer
    speed = bench(str(answer.path), threads=planner.settings.threads, engine=fitting_engine().NAME)
    rates = {m.metric: m.value for m in speed.measurements}
    timed = replace(
        answer, decode=rates["decode_tokens_per_second"], prefill=rates["prefill_tokens_per_second"]
    )
    _write_verdict(timed)
    return timed


def _write_verdict(answer: Fit) -> None:
    """Write the verdict, the budget and whether the budget is met into the artifact's card."""
    assert answer.path is not None
    assert answer.verdict is not None
    answer.verdict.write(answer.path, budget=answer.budget.to_json(), met=answer.met)


def _room(trial: Verdict) -> float:
    """Return the factor on the planned loss with which the gate should pass; 1 or more if the plan may stay."""
    needed = [
        (bound.value + HALVES * (bound.high - bound.value)) / bound.bound
        for bound in trial.bounds
        if bound.high > 0
    ]
    share = max(needed, default=1.0)
    return 1 / share if share <= 1 else 0.98 / share
