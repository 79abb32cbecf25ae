"""The functions that `from zeropoint import ...` offers.

They combine the layers below, as the command line does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zeropoint.errors import UsageError
from zeropoint.progress import Progress, fractions, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from zeropoint.exporters import Export
    from zeropoint.fitting import Fit
    from zeropoint.importers import Imported
    from zeropoint.quantization import Summary, WeightDone
    from zeropoint.runtime.model import Model
    from zeropoint.training.fake_quantize import Trainable
    from zeropoint.training.run import TrainResult
    from zeropoint.values.plan import Plan
    from zeropoint.values.report import Report


def quantize(
    model: str | Path,
    out: str | Path,
    *,
    format: str | None = None,
    plan: Plan | None = None,
    algorithm: str | None = None,
    options: Mapping[str, Any] | None = None,
    keep: Sequence[str] = (),
    seed: int | None = None,
    min_coverage: float = 0.0,
    overwrite: bool = False,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    time_budget: float | None = None,
    resume: bool = False,
    target: str | None = None,
    progress: Callable[[WeightDone], None] | None = None,
) -> Summary:
    """Quantize a checkpoint into the artifact folder `out`; see `zeropoint.quantization.quantize_checkpoint`.

    - `model`: a checkpoint folder, a .gguf file or a hub name;
    - `plan`: each weight's format and algorithm; or, without a plan, `format` (default: "int8"), `algorithm` (default:
      "rtn") and its `options`, `keep` (patterns of the names of weights to leave unquantized) and `seed` (default: 0);
    - `calibration`: a text or chat `.jsonl` file for algorithms that need calibration (default: a built-in sample), of
      which `calibration_tokens` tokens are read;
    - `time_budget`: seconds that `algorithm="auto"` may take (default: 300); the log names the algorithm it picks;
    - `resume`: continue an interrupted run with the same arguments;
    - `target`: the runtime ("vllm", "llama.cpp", "transformers", "onnx") that the artifact will be exported to. Formats
      that you do not name are chosen for it, and a plan that cannot be exported to it is refused before any work.

    Raises `UsageError` for contradictory arguments or an existing `out`, `CheckpointError` if the model is missing or
    damaged, `ArtifactError` if `out` cannot be written, `UnsupportedError` if `target` does not support the plan.
    """
    from zeropoint import exporters
    from zeropoint.calibrate.text import DEFAULT_TOKENS, refuse_missing
    from zeropoint.checkpoint import open_checkpoint
    from zeropoint.machine.detect import Machine
    from zeropoint.quantization import quantize_checkpoint, read_calibration, refuse_output
    from zeropoint.quantization.request import Request

    request = Request(
        plan=plan,
        format=format,
        algorithm=algorithm,
        options=options or {},
        keep=keep,
        seed=seed,
        time_budget=time_budget,
        calibration_tokens=calibration_tokens,
        resume=resume,
        target=None if target is None else exporters.quantize_target(target),
    )
    refuse_missing(calibration)
    refuse_output(out, resume=resume, overwrite=overwrite)
    checkpoint = open_checkpoint(str(model))
    plan, calibration_tokens, _ = request.resolve(checkpoint)
    if calibration_tokens is None and calibration is not None:
        calibration_tokens = DEFAULT_TOKENS
    calibration_data = None
    if calibration_tokens:
        calibration_data = read_calibration(
            checkpoint, calibration, tokens=calibration_tokens, seed=plan.seed
        )
    return quantize_checkpoint(
        checkpoint,
        out,
        plan=plan,
        min_coverage=min_coverage,
        overwrite=overwrite,
        machine=Machine.detect().lasting(),
        calibration=calibration_data,
        resume=resume,
        progress=progress,
    )


def fit(
    model: str | Path,
    out: str | Path | None,
    *,
    max_memory: str | int | None = None,
    max_kl: float | None = None,
    max_perplexity_increase: float | None = None,
    min_decode: float | None = None,
    min_prefill: float | None = None,
    max_accuracy_drop: float | None = None,
    threads: int | None = None,
    progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> Fit:
    """Find per-layer formats that meet a budget on this machine, quantize into `out`, and run the quality gate.

    The bounds are those of `zeropoint.values.budget.Budget`; `max_memory` is bytes or text ("80MB"). With `out=None`
    only the plan is made. `settings` are fields of `zeropoint.fitting.Settings`. In the result, `refusal` is the reason
    if there is no plan, and `met` says whether all bounds hold. Raises `UsageError` for unknown settings.
    """
    from zeropoint.fitting import Settings
    from zeropoint.fitting import fit as run
    from zeropoint.machine.cores import default_threads
    from zeropoint.values.budget import Budget, parse_bytes

    memory = parse_bytes(max_memory) if isinstance(max_memory, str) else max_memory
    budget = Budget(memory, max_kl, max_perplexity_increase, min_decode, min_prefill, max_accuracy_drop)
    _refuse_unknown("fit", settings, [field.name for field in fields(Settings)])
    fit_settings = Settings(threads=threads or default_threads(), **settings)
    return run(model, out, budget, fit_settings, silent if progress is None else fractions(progress))


def train(
    model: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
    **settings: Any,
) -> TrainResult:
    """Train a model for its quantized format, write the artifact `out`, and measure what training recovered.

    The float model is the teacher. `settings` are fields of `zeropoint.training.run.TrainRequest`: `format`, `start`,
    `data`, `trainable`, `steps` or `time_budget` (seconds) and others. With `resume`, an interrupted run of the same
    settings continues, to the same bytes. Raises `UsageError` for unknown or unsuitable settings.
    """
    from zeropoint.training.run import TrainRequest, run_training

    _refuse_unknown("train", settings, [each.name for each in fields(TrainRequest) if each.name != "model"])
    request = TrainRequest(str(model), **settings)
    return run_training(request, out, resume=resume, overwrite=overwrite, progress=progress)


def prepare_qat(
    model: str | Path | PreTrainedModel,
    plan: Plan | str = "int4",
    *,
    start: str | Path | None = None,
    trainable: Trainable = "full",
    rank: int = 16,
    exact: bool = False,
    seed: int = 0,
) -> PreTrainedModel:
    """Return a transformers model that any loop can train through the quantization of its weights and inputs.

    - `model`: a checkpoint folder or hub name, or a loaded transformers model, which is changed in place;
    - `plan`: a format (`int4`) or a `Plan`, from whose codes training starts; or `start`, an artifact of the model;
    - `trainable`: "full" weights, "lora" (low-rank updates of `rank`, absorbed into the codes) or "scales";
    - `exact`: compute each product as the engine does, bit for bit (slower).

    `convert_qat` writes the trained model. Prepare the model before you move it to a GPU.
    """
    from zeropoint.training.recipe import prepare_qat as prepare

    return prepare(model, plan, start=start, trainable=trainable, rank=rank, exact=exact, seed=seed)


def convert_qat(
    model: PreTrainedModel,
    out: str | Path,
    *,
    training: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model that came from `prepare_qat` as the artifact `out`, with exactly its codes and scales.

    `training` (plain JSON values) becomes the section about the training in the artifact's card.
    """
    from zeropoint.training.recipe import convert_qat as convert

    return convert(model, out, training=training, overwrite=overwrite)


def load(
    path: str | Path,
    *,
    threads: int | None = None,
    engine: str = "auto",
    cache_type: str = "float16",
    draft_tokens: int = 0,
) -> Model:
    """Open a model to run it: an artifact, a checkpoint folder, a .gguf file or a hub name.

    The result has `generate`, `stream`, `chat` and `logits`. `engine="auto"` chooses the native engine if it supports
    the model; see `zeropoint.runtime.open_runner`.
    """
    from zeropoint.machine.cores import default_threads
    from zeropoint.runtime import open_runner
    from zeropoint.runtime.model import Model

    threads = threads or default_threads()
    runner = open_runner(
        path, threads=threads, engine=engine, cache_type=cache_type, draft_tokens=draft_tokens
    )
    return Model(runner)


def compare(
    model: str | Path,
    artifacts: Sequence[str | Path],
    *,
    text: str | None = None,
    tokens: int = 8192,
    threads: int | None = None,
) -> Report:
    """Measure size, memory, speed and quality of a checkpoint and its artifacts; see `zeropoint.evaluate.compare`."""
    from zeropoint.evaluate import compare as run
    from zeropoint.machine.cores import default_threads

    return run(
        str(model),
        [str(a) for a in artifacts],
        text=text,
        tokens=tokens,
        threads=threads or default_threads(),
    )


def export(
    path: str | Path,
    target: str,
    out: str | Path,
    *,
    type: str | None = None,
    revision: str | None = None,
    calibration: str | Path | None = None,
    calibration_tokens: int | None = None,
    verify: bool = True,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Export:
    """Export an artifact to another runtime's format (`gguf`, `onnx`, `vllm`, `transformers`); see
    `zeropoint.exporters`.

    With `verify`, the file is read back and its weights are compared bit for bit. With a `type` that only the target
    has (`Q4_K_M`), `path` is the original model, a hub model in its `revision`. Its weights are quantized with
    calibration on `calibration_tokens` tokens of the text `calibration` (default: 65536 tokens of a built-in sample).
    """
    from zeropoint import artifact, exporters
    from zeropoint.files import identity

    if type is None:
        if calibration is not None or calibration_tokens is not None:
            raise UsageError(
                "a calibration text is for --type: without a type, export writes the artifact's weights unchanged"
            )
        if revision is not None:
            raise UsageError("a revision is of a hub model: without a type, export takes an artifact folder")
        opened = artifact.open(path)
        identity.verify(opened.path)
        return exporters.export(opened, target, out, verify=verify, overwrite=overwrite, progress=progress)
    exporters.check_type(target, type)  # before the model is opened
    exporters.refuse_existing(Path(out), overwrite=overwrite)
    from zeropoint.originals import open_original

    original = open_original(path, revision=revision, calibration=calibration, tokens=calibration_tokens)
    return exporters.export_original(
        original, target, type, out, verify=verify, overwrite=overwrite, progress=progress
    )


def import_model(path: str | Path, out: str | Path, *, overwrite: bool = False) -> Imported:
    """Convert a model that another tool quantized (GGUF, GPTQ, AWQ, compressed-tensors) into an artifact with the same
    weights; see `zeropoint.importers`."""
    from zeropoint.importers import import_model as run

    return run(path, out, overwrite=overwrite)


def _refuse_unknown(function: str, settings: Mapping[str, Any], names: Sequence[str]) -> None:
    """Raise `UsageError` if a function does not have one of the settings."""
    if unknown := sorted(set(settings) - set(names)):
        raise UsageError(f"{function} has no such setting: {unknown[0]}; it has {', '.join(names)}")
