"""`compare`: measure a model and its artifacts side by side.

Cost (size, memory, speed) is measured in a fresh process per model, quality in one process for all models. These
processes run worker/process.py, which reads memory from runtime/host_memory.py.

The first row of the table is the model in its own dtype, as people run it. The quality of every row is measured against
the original model computed in float32. The divergence of the original model's own bfloat16 run is the noise floor: an
artifact with a smaller divergence cannot be told from the model.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from zeropoint import runtime
from zeropoint.errors import UsageError
from zeropoint.evaluate import environment, needs
from zeropoint.evaluate.bench import ON_DISK, measure
from zeropoint.evaluate.model_description import Model, describe
from zeropoint.evaluate.quality.greedy_answers import DEFAULT_ANSWER_TOKENS, DEFAULT_PROMPTS
from zeropoint.evaluate.quality.windows import DEFAULT_CONTEXT
from zeropoint.evaluate.speed.settings import SpeedSettings
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker.messages import ModelToOpen, QualityRequest, QualityResult
from zeropoint.machine.cores import default_threads
from zeropoint.machine.detect import Machine
from zeropoint.progress import Progress, part
from zeropoint.values.report import Measurement, Report

logger = logging.getLogger(__name__)

_QUALITY_UNITS = {
    "perplexity": "perplexity",
    "perplexity_ratio": "ratio",
    "kl_divergence": "nats/token",
    "kl_p99": "nats/token",
    "kl_max": "nats/token",
    "top1_agreement": "fraction",
}
_FLOOR = "(noise floor)"


def compare(
    model: str,
    artifacts: Sequence[str],
    *,
    revision: str | None = None,
    text: str | None = None,
    tokens: int = 8192,
    context: int = DEFAULT_CONTEXT,
    threads: int | None = None,
    prompts: Sequence[str] = DEFAULT_PROMPTS,
    answer_tokens: int = DEFAULT_ANSWER_TOKENS,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    batch: int = 1,
    repeats: int = 3,
    speed: bool = True,
    engine: str = "auto",
    streamed: bool | None = None,
    seed: int = 0,
    command: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure a checkpoint `model` and artifacts of the same model, and return the report.

    `artifacts` may include files of external runtimes (GGUF, ONNX, folders that other tools quantized); each runs in
    its own runtime. `text` is a UTF-8 file with two blank lines between documents, None for a built-in text; at least
    `tokens` of its tokens are scored, in windows of `context` tokens. `prompts` may be empty. Without `speed`, the only
    cost reported is the size on disk, not load time, memory or speed. With `streamed`, the float32 reference model runs
    block by block; None does so if it does not fit into the free memory. Raises `UsageError` if a setting is out of
    range, an artifact is of another model, or memory is too small, and each model's own errors.
    """
    if not artifacts:
        raise UsageError("compare needs at least one artifact beside the model")
    threads = default_threads(threads)
    settings = SpeedSettings(prompt_tokens, new_tokens, threads, batch, repeats)
    models = describe(model, artifacts, revision=revision)
    for each in models:
        if each.doubts:
            logger.warning(
                "%s: %s. The quality in its card is left out: the card was written for another state of the artifact",
                each.name,
                "; ".join(each.doubts),
            )
    request = quality_request(
        models,
        engine=engine,
        threads=threads,
        text=text,
        tokens=tokens,
        context=context,
        seed=seed,
        streamed=streamed,
    )
    if speed:
        for each in models:
            needs.refuse_large_run(each, "leave its speed out (--no-speed)")
    request = replace(
        request, prompts=tuple(prompts), answer_tokens=answer_tokens, speakers=[m.name for m in models]
    )
    if request.streamed and prompts and not needs.fits_beside(models):
        logger.warning("no sample answers: %s does not fit into the free memory", models[0].name)
        request = replace(request, prompts=())
    rows: list[Measurement] = []
    engines: dict[str, dict[str, str]] = {}
    timed = models if speed else []
    # For the progress bar, quality counts as two steps per model.
    steps = len(timed) + 2 * len(models)
    for index, each in enumerate(timed):
        measured, engines[each.name] = measure(
            each,
            settings,
            dtype=running_dtype(each),
            engine=running_engine(each, engine),
            text=text,
            progress=part(progress, index / steps, 1 / steps, each.name),
        )
        rows += measured
    share = len(timed) / steps
    result = client.call(
        request, threads=threads, subject="quality", progress=part(progress, share, 1 - share, "quality")
    )
    if not speed:
        for name, run in ((each.name, result.runs[each.name]) for each in models):
            engines[name] = {"engine": run.engine, "reason": run.reason}
            rows.append(Measurement.exact(name, "weights_bytes", float(run.weights_bytes), "bytes", ON_DISK))
    rows += quality_measurements(models[0].name, result)
    names = [model, *artifacts]
    shown = command or shlex.join(
        ["zeropoint", "compare", *names, "--tokens", str(tokens), "--threads", str(threads)]
    )
    extra = {**_extra(models, result, shown), "engines": engines}
    if speed:
        extra["settings"] = settings.within(models[0].context).to_json()
    return Report(tuple(rows), Machine.detect().to_json(), extra)


def running_dtype(model: Model) -> str:
    """Return the dtype to run a model in: float32 for a float16 checkpoint, else "auto" (the model's own).

    CPUs only emulate float16 arithmetic, a hundred times slower, so nobody runs models in float16 on CPUs. External
    runtimes choose their own dtype.
    """
    return "float32" if not (model.card or model.runtime) and model.dtype == "float16" else "auto"


def running_engine(model: Model, engine: str) -> str:
    """Return the engine to run a model with.

    A checkpoint runs in transformers, whatever engine runs the artifacts. An external runtime's file runs in that
    runtime.
    """
    if model.runtime:
        return "auto"
    return runtime.reference_engine().NAME if engine in runtime.ENGINES and not model.card else engine


def quality_request(
    models: Sequence[Model],
    *,
    engine: str,
    threads: int,
    text: str | None,
    tokens: int,
    context: int,
    seed: int,
    streamed: bool | None = None,
) -> QualityRequest:
    """Return the worker's quality request, without prompts to answer.

    `models[0]` in float32 is the reference model; all models are candidates. If `models[0]` is not in bfloat16, a
    bfloat16 run of it is one more candidate, for the noise floor. Raises `UsageError` if memory is too small.
    """
    first = models[0]
    reference_runs_on = running_engine(first, engine)
    candidates = {m.name: ModelToOpen(m.path, running_dtype(m), running_engine(m, engine)) for m in models}
    if first.dtype != "bfloat16":
        candidates[f"{first.name} {_FLOOR}"] = ModelToOpen(first.path, "bfloat16", reference_runs_on)
    return QualityRequest(
        ModelToOpen(first.path, "float32", reference_runs_on),
        candidates,
        threads,
        text,
        tokens,
        window := min(context, first.context or context),
        seed,
        streamed=needs.streams(
            models, engine=reference_runs_on, tokens=tokens, context=window, asked=streamed
        ),
    )


def noise_floor(reference: str, result: QualityResult) -> Mapping[str, Any]:
    """Return the quality entry of the reference model's own 16-bit run, from the worker's quality result."""
    candidates = result.candidates
    return candidates.get(f"{reference} {_FLOOR}", candidates[reference])


def quality_measurements(reference: str, result: QualityResult) -> list[Measurement]:
    """Return the worker's quality result as measurements; the noise floor is a measurement of the reference model."""
    where = (
        f"{result.text} ({result.text_digest}), {result.scored_tokens} tokens, "
        f"context {result.context}, against the float32 reference, "
        f"95 % bootstrap over {result.units} {result.unit_kind}"
    )
    rows = []

    def add(model: str, metric: str, entry: Mapping[str, Any], unit: str) -> None:
        rows.append(
            Measurement(model, metric, entry["value"], entry["low"], entry["high"], entry["n"], unit, where)
        )

    for name, entry in result.candidates.items():
        if name.endswith(_FLOOR):
            continue
        for metric, unit in _QUALITY_UNITS.items():
            add(name, metric, entry[metric], unit)
        rows.append(
            Measurement.exact(name, "minimal_detectable_kl", entry["detectable_kl"], "nats/token", where)
        )
    floor = noise_floor(reference, result)
    add(reference, "noise_floor_kl", floor["kl_divergence"], "nats/token")
    add(reference, "noise_floor_top1", floor["top1_agreement"], "fraction")
    return rows


def _extra(models: Sequence[Model], result: QualityResult, command: str) -> dict[str, Any]:
    """Return the report's values besides the measurements."""
    sound = [model for model in models if not model.doubts]
    return {
        "kind": "compare",
        "models": {m.name: m.to_json() for m in models},
        "quality": {k: v for k, v in result.to_json().items() if k not in ("runs", "answers")},
        "layer_errors": {m.name: m.card["layer_errors"] for m in sound if m.card.get("layer_errors")},
        "coverage": {m.name: coverage(m) for m in models if m.card.get("plan")},
        "verdicts": {m.name: m.card["verdict"] for m in sound if m.card.get("verdict")},
        "answers": result.answers,
        "command": command,
        "versions": environment.versions(),
    }


def coverage(model: Model) -> dict[str, Any]:
    """Return from the card's plan the number of weights per scheme, and the unquantized weights with their reasons."""
    choices: Mapping[str, Mapping[str, Any]] = model.card["plan"].get("choices", {})
    schemes: dict[str, int] = {}
    kept_weights = []
    for name, choice in choices.items():
        scheme = choice.get("scheme")
        if scheme is None:
            kept_weights.append({"name": name, "reason": choice.get("reason", "")})
        else:
            schemes[scheme] = schemes.get(scheme, 0) + 1
    return {"schemes": schemes, "kept": kept_weights, "weights": len(choices)}
