"""`fit`: from a budget to a checked artifact, or to an honest no.

    candidates   the model in each format, packed (seconds)
    costs        exact bytes; seconds of a token, measured; the loss of each group, measured
    search       the best plan within the budget, run from end to end
    quantize     the plan carried out
    trial        loss in a fresh process, on other text: a plan that is too near the bound is made again, tighter
    gate         loss in a fresh process, once, on text that no decision was made on; and speed

The text is split in three by documents: for planning, for trials, for the gate.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import GateError, UsageError
from zeropoint.evaluate import Verdict, bench, check
from zeropoint.evaluate.windows import EvaluationText
from zeropoint.files import documents
from zeropoint.fitting.candidates import WIDE, Step
from zeropoint.fitting.planner import Planner
from zeropoint.fitting.refusals import not_needed, refusal
from zeropoint.fitting.result import OBJECTIVES, Fit, Settings
from zeropoint.machine.detect import Machine
from zeropoint.quantization import quantize_checkpoint, refuse_output
from zeropoint.sources.notes import tell
from zeropoint.values.budget import Budget

#: Times a plan that fails its trial is made again, tighter.
RETRIES = 2
#: Of the trial's interval, how many times its upper half must fit below the bound: once for the gate's own interval,
#: and once for what another text of the same kind may give.
HALVES = 2.0
#: Where no loss is asked for, the gate holds the artifact to what was promised, times this.
PROMISE = 1.25


def fit(source: str | Path, out: str | Path | None, budget: Budget, settings: Settings, step: Step) -> Fit:
    """Find the plan, and with `out` carry it out and check it. Nothing is written when the answer is no.

    Raises `UsageError` for an empty budget or an existing output, `UnsupportedError` for a model that the native
    engine does not run, and the errors of the steps.
    """
    if budget.is_empty:
        raise UsageError(
            "there is nothing to plan by: bound the memory, the loss as KL or perplexity, or the speed; "
            "accuracy on tasks is a bound of the gate only"
        )
    if budget.max_accuracy_drop is not None and settings.tasks is None:
        raise UsageError("a bound on accuracy needs tasks to measure it on")
    if settings.objective is not None and settings.objective not in OBJECTIVES:
        raise UsageError(f"there is no objective {settings.objective!r}: use {', '.join(OBJECTIVES)}")
    if out is not None:
        refuse_output(out, overwrite=settings.overwrite)
    checkpoint = open_checkpoint(source)
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
    """From the tables to the answer."""
    budget, settings = planner.budget, planner.settings
    if (no := refusal(planner.search, budget)) is not None:
        return replace(planner.answer(None), refusal=no)
    if not settings.anyway and (no := not_needed(budget, planner.uniform_points()[WIDE])) is not None:
        return replace(planner.answer(None), refusal=no, unneeded=True)
    margin = planner.known.margin
    point = planner.best(margin)
    if point is None and margin < 1:  # what another plan's trial said refuses nothing
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
        if tighter is None:  # the last plan stays, and the gate says what it is worth
            break
        point = tighter
        answer = _carry_out(planner, out, planner.answer(point), again=True)
    return _measure_speed(planner, planner.timed(_gate(planner, answer), point))


def _carry_out(planner: Planner, out: Path, answer: Fit, *, again: bool) -> Fit:
    """Quantize."""
    assert answer.plan is not None
    settings = planner.settings
    quantize_checkpoint(
        planner.candidates.checkpoint,
        out,
        plan=answer.plan,
        overwrite=settings.overwrite or again,
        machine=Machine.detect().lasting(),
        calibration=planner.calibration,
        resumable=False,
    )
    return replace(answer, path=out)


def _gate(planner: Planner, answer: Fit) -> Fit:
    """Judge what was made, on the text that is kept for this, tasks too. Whatever comes out stands."""
    settings = planner.settings
    verdict = _judge(
        planner,
        answer,
        planner.gate_text,
        tasks=settings.tasks,
        max_accuracy_drop=answer.budget.max_accuracy_drop,
    )
    done = replace(answer, verdict=verdict)
    _write_verdict(done)
    return done


def _judge(planner: Planner, answer: Fit, text: EvaluationText, **more: Any) -> Verdict:
    """Hold the artifact to the bounds on the loss in a fresh process, or to what was promised where there are none."""
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
    """The artifact's speed, in a fresh process: of the one that stays, not of those that their gates failed."""
    if planner.target.described is not None:
        return answer
    speed = bench(str(answer.path), threads=planner.settings.threads, engine="native")
    rates = {m.metric: m.value for m in speed.measurements}
    done = replace(
        answer, decode=rates["decode_tokens_per_second"], prefill=rates["prefill_tokens_per_second"]
    )
    _write_verdict(done)
    return done


def _write_verdict(answer: Fit) -> None:
    """What was found goes into the artifact's card."""
    assert answer.path is not None
    assert answer.verdict is not None
    answer.verdict.write(answer.path, budget=answer.budget.to_json(), met=answer.met)


def _room(trial: Verdict) -> float:
    """The loss that may be planned for the gate to pass, as a part of what was planned; 1 or more where it may stay."""
    needed = [
        (bound.value + HALVES * (bound.high - bound.value)) / bound.bound
        for bound in trial.bounds
        if bound.high > 0
    ]
    share = max(needed, default=1.0)
    return 1 / share if share <= 1 else 0.98 / share
