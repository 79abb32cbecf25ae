"""`bench`: the cost of one model (load time, memory, speed), measured in a fresh process.

`measure` starts the process and sends it a request. In that process, `performance` (worker/process.py) loads the model
and takes the measurements, and runtime/host_memory.py reads the memory.
"""

from __future__ import annotations

import shlex

from zeropoint.evaluate import environment, needs
from zeropoint.evaluate.model_description import Model, describe
from zeropoint.evaluate.speed.settings import SpeedSettings
from zeropoint.evaluate.worker import client
from zeropoint.evaluate.worker.messages import ModelToOpen, PerformanceRequest, PerformanceResult
from zeropoint.machine.cores import default_threads
from zeropoint.machine.detect import Machine
from zeropoint.progress import Progress
from zeropoint.values.report import Measurement, Report

#: What `weights_bytes` counts.
ON_DISK = "tensors on disk"


def bench(
    path: str,
    *,
    revision: str | None = None,
    prompt_tokens: int = 512,
    new_tokens: int = 128,
    threads: int | None = None,
    batch: int = 1,
    repeats: int = 5,
    dtype: str = "auto",
    engine: str = "auto",
    text: str | None = None,
    command: str | None = None,
    progress: Progress | None = None,
) -> Report:
    """Measure load time, memory, prefill and decode speed of an artifact or a checkpoint, and return the report.

    The prompt is the beginning of the file `text` (None: a built-in text). The report shows `command` (None: a command
    line with these settings). Raises `UsageError` if a setting is out of range, and the model's own errors.
    """
    settings = SpeedSettings(prompt_tokens, new_tokens, default_threads(threads), batch, repeats)
    (model,) = describe(path, revision=revision)
    needs.refuse_large_run(
        model, "quantize it to fewer bits (--format int4), or use a machine with more memory"
    )
    rows, ran = measure(model, settings, dtype=dtype, engine=engine, text=text, progress=progress)
    extra = {
        "kind": "bench",
        "engines": {model.name: ran},
        "models": {model.name: model.to_json()},
        "settings": settings.within(model.context).to_json(),
        "command": command or _command(path, settings),
        "versions": environment.versions(),
    }
    return Report(tuple(rows), Machine.detect().to_json(), extra)


def _command(path: str, settings: SpeedSettings) -> str:
    options = {"--prompt-tokens": settings.prompt_tokens, "--new-tokens": settings.new_tokens}
    options |= {"--threads": settings.threads, "--batch": settings.batch}
    return shlex.join(["zeropoint", "bench", path, *(str(x) for pair in options.items() for x in pair)])


def measure(
    model: Model,
    settings: SpeedSettings,
    *,
    dtype: str,
    engine: str,
    text: str | None = None,
    progress: Progress | None = None,
) -> tuple[list[Measurement], dict[str, str]]:
    """Measure one model's cost in a fresh process, as `bench` does.

    Return the measurements, and the engine with the reason why the native engine did not run the model ("" if none).
    """
    settings = settings.within(model.context)
    result = client.call(
        PerformanceRequest(ModelToOpen(model.path, dtype, engine), text=text, **settings.to_json()),
        threads=settings.threads,
        subject=model.name,
        progress=progress,
    )
    ran = {"engine": result.engine, "reason": result.engine_reason}
    return measurements(model.name, result, settings), ran


def measurements(name: str, result: PerformanceResult, settings: SpeedSettings) -> list[Measurement]:
    """Return the worker's performance result as measurements."""
    loaded, baseline = result.loaded, result.baseline
    fresh = "fresh process, libraries included"
    step = "after load and one step of 8 tokens"
    exact = {
        "weights_bytes": (result.weights_bytes, ON_DISK),
        "packed_bytes": (result.packed_bytes, "weights in memory, as the engine holds them"),
        "resident_bytes": (loaded.resident_bytes, f"{step}, {fresh}"),
        "resident_at_load_bytes": (
            result.mapped.resident_bytes,
            f"after load, before the first step has touched mapped weights, {fresh}",
        ),
        "resident_increase_bytes": (
            loaded.resident_bytes - baseline.resident_bytes,
            f"{step}, less resident before load with libraries and tokenizer loaded",
        ),
        "resident_anonymous_bytes": (loaded.anonymous_bytes, f"allocated share, {step}, {fresh}"),
        "resident_file_bytes": (loaded.file_bytes, f"mapped files' share, {step}, {fresh}"),
        "baseline_bytes": (
            baseline.resident_bytes,
            "resident before load, libraries and tokenizer loaded",
        ),
        "load_peak_bytes": (loaded.peak_bytes, f"peak until the first step, {fresh}"),
        "peak_bytes": (result.after.peak_bytes, f"peak while running, {fresh}"),
    }
    rows = [
        Measurement.exact(name, metric, float(value), "bytes", where)
        for metric, (value, where) in exact.items()
        if (loaded.resident_bytes or metric in ("weights_bytes", "packed_bytes"))
        and (value or metric != "packed_bytes")  # not every runtime reports packed bytes
    ]
    engine = result.engine
    one = f"{engine} engine, one load, file cache as found"
    for metric, seconds, where in (
        ("load_seconds", result.load_seconds, one),
        ("ready_seconds", result.ready_seconds, f"{one}, and one step of 8 tokens"),
    ):
        rows.append(Measurement.exact(name, metric, seconds, "seconds", where))
    during = "kept busy by other programs while speed was measured"
    rows.append(Measurement.exact(name, "other_load_cores", result.other_load_cores, "cores", during))
    for kind, rate, where in (
        ("prefill", result.speed.prefill, settings.prefill_where(engine)),
        ("decode", result.speed.decode, settings.decode_where(engine)),
    ):
        rows.append(
            Measurement(
                name,
                f"{kind}_tokens_per_second",
                rate.median,
                rate.slowest,
                rate.fastest,
                rate.repeats,
                "tokens/s",
                where,
            )
        )
    return rows
